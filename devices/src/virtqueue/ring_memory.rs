//! The three areas of a split virtqueue in guest memory (Virtio 1.2 §2.7): resolved once at
//! activation, then accessed without a lookup.
//!
//! Invariant behind all unsafe code here: each area is mapped, aligned for its fields and as long
//! as the queue size requires ([`RingMemory::new`]); it stays mapped because `map` keeps guest
//! memory; and every offset is within it, because ring positions are taken modulo the size. The
//! guest may write to the areas at any time: each value is read once, and the caller checks it.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::GuestMemory;
use crate::guest_memory::{DESCRIPTOR_BYTES, DescriptorTable, GuestMap};

/// One entry of a descriptor table, as the driver wrote it (§2.7.5).
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// Reads entry `index` of a table; `None` if the table is shorter.
    #[inline]
    pub(super) fn read(table: &DescriptorTable<'_>, index: u16) -> Option<Self> {
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
pub(super) struct RingMemory {
    size: u16,
    descriptors: *const u64,
    available: *mut u8,
    used: *mut u8,
    map: GuestMap,
}

// SAFETY: the areas are in guest memory, which `map` keeps mapped wherever this value moves; every
// access to them is atomic or volatile, as for memory shared with the guest.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Resolves the areas; `None` if an area is outside of guest memory.
    pub(super) fn new(
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
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Guest memory.
    #[inline]
    pub(super) fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Entry `index` of the queue's own table; `None` if the table is shorter.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
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

    /// The driver's index. Acquires all that the driver wrote before it.
    #[inline]
    pub(super) fn available_index(&self) -> u16 {
        u16::from_le(self.available(2).load(Ordering::Acquire))
    }

    /// Whether the driver suppresses interrupts (without EVENT_IDX).
    pub(super) fn interrupts_suppressed(&self) -> bool {
        const NO_INTERRUPT: u16 = 1;
        u16::from_le(self.available(0).load(Ordering::Relaxed)) & NO_INTERRUPT != 0
    }

    /// The entry at position `index` (mod size) of the available ring: the head of a chain.
    #[inline]
    pub(super) fn available_entry(&self, index: u16) -> u16 {
        u16::from_le(self.available(4 + 2 * self.position(index)).load(Ordering::Relaxed))
    }

    /// The used index at which the driver wants an interrupt (with EVENT_IDX).
    pub(super) fn used_event(&self) -> u16 {
        u16::from_le(self.available(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Fills the entry at position `index` (mod size) of the used ring.
    #[inline]
    pub(super) fn set_used_entry(&self, index: u16, head: u16, written: u32) {
        let at = 4 + 8 * self.position(index);
        // The driver reads the entry only once the used index has passed it.
        self.used_word(at).store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_word(at + 4).store(written.to_le(), Ordering::Relaxed);
    }

    /// The published used index, including one that an earlier worker published.
    pub(super) fn used_index(&self) -> u16 {
        u16::from_le(self.used_half(2).load(Ordering::Acquire))
    }

    /// Publishes all entries before `index`.
    pub(super) fn set_used_index(&self, index: u16) {
        self.used_half(2).store(index.to_le(), Ordering::Release);
    }

    /// Suppresses kicks or requests them (without EVENT_IDX).
    pub(super) fn set_kicks_suppressed(&self, suppressed: bool) {
        self.used_half(0).store(u16::from(suppressed).to_le(), Ordering::Relaxed);
    }

    /// Requests a kick when the driver passes `index` (with EVENT_IDX).
    pub(super) fn set_available_event(&self, index: u16) {
        self.used_half(4 + 8 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    /// Ring positions are indices modulo the size, a power of two.
    #[inline]
    fn position(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// A 16-bit field of the available ring; `at` is even and within its length.
    #[inline]
    fn available(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at < 6 + 2 * usize::from(self.size));
        // SAFETY: within the area and aligned, by the invariant above; the guest's accesses count
        // as atomic.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(at).cast()) }
    }

    /// A 16-bit field of the used ring; `at` is even and within its length.
    #[inline]
    fn used_half(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at < 6 + 8 * usize::from(self.size));
        // SAFETY: as in `available`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(at).cast()) }
    }

    /// A 32-bit field of the used ring's entries; `at` is a multiple of 4 and before their end.
    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at < 4 + 8 * usize::from(self.size));
        // SAFETY: as in `available`.
        unsafe { AtomicU32::from_ptr(self.used.wrapping_add(at).cast()) }
    }
}

/// Resolves an area of `len` bytes with the alignment of `T`; `None` if it is outside of guest
/// memory.
fn area<T>(memory: &GuestMemory, addr: GuestAddress, len: usize) -> Option<*mut u8> {
    let base = memory.get_slice(addr, len).ok()?.ptr_guard_mut().as_ptr();
    base.cast::<T>().is_aligned().then_some(base)
}
