//! The capacity of a disk as its driver knows it, which a resize changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::block::{Backend, ResizeError};

/// Unit of the capacity (Virtio 1.2 §5.2.4), in bytes.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// Number of bits for the sectors, which are fewer than 2^55. The generation is above them.
const GENERATION_SHIFT: u32 = 56;

/// The capacity and the number of its changes in one word: a driver that reads the capacity in
/// halves sees the generation change with it (Virtio 1.2 §4.1.4.3.1).
#[derive(Debug)]
pub(crate) struct DriverCapacity {
    word: AtomicU64,
    /// Held during a resize, so that resizes are announced in order.
    resizing: Mutex<()>,
}

impl DriverCapacity {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { word: AtomicU64::new(bytes / SECTOR_BYTES), resizing: Mutex::default() }
    }

    /// Capacity in sectors of 512 bytes.
    #[inline]
    pub(crate) fn sectors(&self) -> u64 {
        self.word.load(Ordering::Acquire) & ((1 << GENERATION_SHIFT) - 1)
    }

    /// Capacity in bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.sectors() * SECTOR_BYTES
    }

    /// Number of changes, modulo 256.
    pub(crate) fn generation(&self) -> u8 {
        self.word.load(Ordering::Acquire).to_le_bytes()[7]
    }

    /// Sets the capacity. Returns whether it changed.
    pub(crate) fn set(&self, bytes: u64) -> bool {
        self.store(bytes, &self.lock())
    }

    /// Resizes `backend`, adopts its new capacity and calls `announce` if it changed. Returns the
    /// capacity in bytes. Blocks.
    ///
    /// # Errors
    ///
    /// See [`Backend::resize`].
    pub(crate) fn resize(
        &self,
        backend: &dyn Backend,
        size: Option<u64>,
        announce: impl FnOnce(),
    ) -> Result<u64, ResizeError> {
        let resizing = self.lock();
        let bytes = backend.resize(size)?;
        if self.store(bytes, &resizing) {
            announce();
        }
        Ok(bytes)
    }

    fn store(&self, bytes: u64, _resizing: &MutexGuard<'_, ()>) -> bool {
        let changed = bytes / SECTOR_BYTES != self.sectors();
        if changed {
            let generation = u64::from(self.generation().wrapping_add(1));
            let word = (generation << GENERATION_SHIFT) | (bytes / SECTOR_BYTES);
            self.word.store(word, Ordering::Release);
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // Guards no data that a panic could leave inconsistent.
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_changes_with_the_capacity() {
        let capacity = DriverCapacity::new(1 << 20);
        assert_eq!((capacity.bytes(), capacity.generation()), (1 << 20, 0));
        assert!(!capacity.set(1 << 20));
        assert_eq!(capacity.generation(), 0);
        assert!(capacity.set(u64::MAX - 511));
        assert_eq!((capacity.bytes(), capacity.generation()), (u64::MAX - 511, 1));
        for turn in 2..300_u64 {
            assert!(capacity.set(turn << 20));
            assert_eq!(u64::from(capacity.generation()), turn % 256);
        }
    }
}
