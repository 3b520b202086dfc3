//! The three areas of a split virtqueue in guest memory (Virtio 1.2 §2.7), resolved once when the
//! queue is activated and from then on reached without a look-up.
//!
//! The invariant behind all unsafe code here: each area is mapped, aligned for its words and as long as the queue's size says,
//! which [`RingMemory::new`] has checked; it stays mapped because `map` keeps guest memory; and every offset is below
//! its length, because positions are taken modulo the size. The guest may write to all of it at any time: each value
//! is read once, and what it says is checked by the caller.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::GuestMemory;
use crate::guest_memory::{DESCRIPTOR_BYTES, GuestMap, Table};

/// One entry of a descriptor table, as the driver wrote it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) addr: GuestAddress,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// Reads entry `index` of a table; `None` if there is none.
    #[inline]
    pub(crate) fn read(table: &Table<'_>, index: u16) -> Option<Self> {
        Some(Self::decode(table.entry(index)?))
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the word holds packed narrower fields")]
    fn decode([addr, rest]: [u64; 2]) -> Self {
        Self {
            addr: GuestAddress(addr),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// The areas of one queue.
pub(crate) struct RingMemory {
    size: u16,
    descriptors: *const u64,
    available: *mut u8,
    used: *mut u8,
    map: GuestMap,
}

// SAFETY: the areas lie in guest memory, which `map` keeps mapped wherever this value goes; every access to them is
// atomic or volatile, as for memory shared with the guest.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Resolves the areas; `None` where guest memory does not hold one of them.
    pub(crate) fn new(
        memory: &GuestMemory,
        size: u16,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Option<Self> {
        let entries = usize::from(size);
        let map = GuestMap::new(memory);
        let table_bytes = DESCRIPTOR_BYTES as usize * entries;
        Some(Self {
            size,
            descriptors: area::<u64>(memory, descriptors, table_bytes)?.cast(),
            // flags, idx, ring, used_event (§2.7.6)
            available: area::<AtomicU16>(memory, available, 6 + 2 * entries)?,
            // flags, idx, ring, avail_event (§2.7.8)
            used: area::<AtomicU32>(memory, used, 6 + 8 * entries)?,
            map,
        })
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Guest memory.
    #[inline]
    pub(crate) fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Entry `index` of the queue's own table; `None` if there is no such entry.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        let words = self.descriptors.wrapping_add(2 * usize::from(index));
        // SAFETY: within the area and aligned, by the invariant above.
        let first = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let second = unsafe { words.wrapping_add(1).read_volatile() };
        Some(Descriptor::decode([u64::from_le(first), u64::from_le(second)]))
    }

    /// The driver's index; everything the driver wrote before it is visible after this.
    #[inline]
    pub(crate) fn available_index(&self) -> u16 {
        u16::from_le(self.available(2).load(Ordering::Acquire))
    }

    /// Whether the driver asked not to be interrupted (without `EVENT_IDX`).
    pub(crate) fn interrupts_suppressed(&self) -> bool {
        const NO_INTERRUPT: u16 = 1;
        u16::from_le(self.available(0).load(Ordering::Relaxed)) & NO_INTERRUPT != 0
    }

    /// The head of the chain at position `index` (mod size) of the available ring.
    #[inline]
    pub(crate) fn available_entry(&self, index: u16) -> u16 {
        u16::from_le(self.available(4 + 2 * self.position(index)).load(Ordering::Relaxed))
    }

    /// The used index at which the driver wants an interrupt (with `EVENT_IDX`).
    pub(crate) fn used_event(&self) -> u16 {
        u16::from_le(self.available(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Fills the entry at position `index` (mod size) of the used ring.
    #[inline]
    pub(crate) fn set_used_entry(&self, index: u16, head: u16, written: u32) {
        let at = 4 + 8 * self.position(index);
        // Nobody looks before the index has passed it.
        self.used_word(at).store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_word(at + 4).store(written.to_le(), Ordering::Relaxed);
    }

    /// The index as it was last shown to the driver, whoever did.
    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(self.used_half(2).load(Ordering::Acquire))
    }

    /// Shows the driver all entries before `index`.
    pub(crate) fn set_used_index(&self, index: u16) {
        self.used_half(2).store(index.to_le(), Ordering::Release);
    }

    /// Asks the driver to kick or not to (without `EVENT_IDX`).
    pub(crate) fn set_kicks_suppressed(&self, suppressed: bool) {
        self.used_half(0).store(u16::from(suppressed).to_le(), Ordering::Relaxed);
    }

    /// Asks the driver to kick when it passes `index` (with `EVENT_IDX`).
    pub(crate) fn set_available_event(&self, index: u16) {
        self.used_half(4 + 8 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    /// Ring positions count modulo the size, a power of two.
    #[inline]
    fn position(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// A word of the available ring; `at` is even and below its length.
    #[inline]
    fn available(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at < 6 + 2 * usize::from(self.size));
        // SAFETY: within the area and aligned, by the invariant above; what others do to it is atomic.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(at).cast()) }
    }

    /// A word of two bytes of the used ring; `at` is even and below its length.
    #[inline]
    fn used_half(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at < 6 + 8 * usize::from(self.size));
        // SAFETY: as in `available`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(at).cast()) }
    }

    /// A word of four bytes of the used ring's entries; `at` is a multiple of 4 and below their end.
    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at < 4 + 8 * usize::from(self.size));
        // SAFETY: as in `available`.
        unsafe { AtomicU32::from_ptr(self.used.wrapping_add(at).cast()) }
    }
}

/// Resolves one area of a queue that is made of words as large as `T`; `None` where guest memory does not hold it.
fn area<T>(memory: &GuestMemory, addr: GuestAddress, len: usize) -> Option<*mut u8> {
    let base = memory.get_slice(addr, len).ok()?.ptr_guard_mut().as_ptr();
    base.cast::<T>().is_aligned().then_some(base)
}
