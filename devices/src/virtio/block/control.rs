//! What the device, its queues' workers and the control plane share of a disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::block::{Backend, LogLimit, ResizeError};

use super::request::SECTOR_BYTES;
use crate::WriteCache;
use crate::storage::disk_control::ControlledDisk;
use crate::storage::stats::QueueStats;
use crate::virtio::ConfigChange;

/// The capacity as the driver knows it, and how often it changed. Both are one word, so that a driver
/// that reads the capacity in halves sees the generation change with it (Virtio 1.2 §4.1.4.3.1).
#[derive(Debug)]
pub(super) struct Capacity(AtomicU64);

/// Below it the sectors, which are less than 2^55; above it the generation.
const GENERATION_SHIFT: u32 = 56;

impl Capacity {
    pub(super) fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes / SECTOR_BYTES))
    }

    pub(super) fn sectors(&self) -> u64 {
        self.0.load(Ordering::Acquire) & ((1 << GENERATION_SHIFT) - 1)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sectors() * SECTOR_BYTES
    }

    pub(super) fn generation(&self) -> u8 {
        self.0.load(Ordering::Acquire).to_le_bytes()[7]
    }

    /// Sets the capacity; whether that changed it.
    fn set(&self, bytes: u64) -> bool {
        let changed = bytes / SECTOR_BYTES != self.sectors();
        if changed {
            let generation = u64::from(self.generation().wrapping_add(1));
            let word = (generation << GENERATION_SHIFT) | (bytes / SECTOR_BYTES);
            self.0.store(word, Ordering::Release);
        }
        changed
    }
}

/// What the device, its workers and its controllers share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) capacity: Capacity,
    pub(super) write_cache: WriteCache,
    /// Whether the driver may switch it: it negotiated CONFIG_WCE, and FLUSH to live with a cache.
    pub(super) cache_switchable: AtomicBool,
    pub(super) cache_stays_on: LogLimit,
    /// By queue.
    pub(super) stats: Vec<Arc<QueueStats>>,
    /// Tells the driver; nothing until the device has a transport. Held while the size changes, so
    /// that changes come one after the other.
    pub(super) changed: Mutex<Option<ConfigChange>>,
}

impl ControlledDisk for Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn capacity(&self) -> u64 {
        self.capacity.bytes()
    }

    fn write_cache(&self) -> bool {
        self.write_cache.is_on()
    }

    fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// The driver is told through the configuration (Virtio 1.2 §5.2.5).
    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.backend.resize(size)?;
        if self.capacity.set(size)
            && let Some(changed) = &*changed
        {
            changed.notify();
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_changes_with_the_capacity() {
        let capacity = Capacity::new(1 << 20);
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
