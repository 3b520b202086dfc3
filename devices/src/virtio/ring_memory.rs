//! The three areas of a split virtqueue in guest memory (Virtio 1.2 §2.7), resolved once when the
//! queue is activated and from then on reached without a look-up.
//!
//! The guest may write to all of it at any time: each value is read once, and what it says is
//! checked by the caller.

use std::sync::atomic::Ordering;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileRef, VolatileSlice,
};

use super::guest_slice::slice;
use crate::GuestMemory;

/// Size of one descriptor (Virtio 1.2 §2.7.5).
pub(super) const DESCRIPTOR_BYTES: usize = 16;

/// One entry of a descriptor table, as the driver wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// Reads entry `index` of a table. The table need not be aligned.
    #[expect(clippy::cast_possible_truncation, reason = "the word holds packed narrower fields")]
    fn read(table: &VolatileSlice<'_>, index: u16) -> Option<Self> {
        let at = usize::from(index) * DESCRIPTOR_BYTES;
        let addr: VolatileRef<'_, u64> = table.get_ref(at).ok()?;
        let rest: VolatileRef<'_, u64> = table.get_ref(at + 8).ok()?;
        let rest = u64::from_le(rest.load());
        Some(Self {
            addr: GuestAddress(u64::from_le(addr.load())),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        })
    }
}

/// An indirect descriptor table (Virtio 1.2 §2.7.5.3). It need not be aligned.
pub(super) struct IndirectTable<'a>(VolatileSlice<'a>);

impl<'a> IndirectTable<'a> {
    /// The table at `addr` of `len` bytes; `None` where guest memory does not hold it.
    pub(super) fn new(memory: &'a GuestMemory, addr: GuestAddress, len: u32) -> Option<Self> {
        slice(memory, addr, len as usize).map(Self)
    }

    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        Descriptor::read(&self.0, index)
    }
}

/// The areas of one queue.
pub(super) struct RingMemory {
    size: u16,
    descriptors: VolatileSlice<'static>,
    available: VolatileSlice<'static>,
    used: VolatileSlice<'static>,
    /// Keeps the mappings behind the slices alive.
    _memory: GuestMemory,
}

// SAFETY: the slices point into guest memory, which `_memory` keeps mapped wherever this value goes;
// every access through them is volatile or atomic, as for memory shared with the guest.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Resolves the areas; `None` where guest memory does not hold one of them.
    pub(super) fn new(
        memory: &GuestMemory,
        size: u16,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Option<Self> {
        let entries = usize::from(size);
        Some(Self {
            size,
            descriptors: area(memory, descriptors, DESCRIPTOR_BYTES * entries)?,
            // flags, idx, ring, used_event (§2.7.6)
            available: area(memory, available, 6 + 2 * entries)?,
            // flags, idx, ring, avail_event (§2.7.8)
            used: area(memory, used, 6 + 8 * entries)?,
            _memory: memory.clone(),
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Entry `index` of the queue's own table; `None` if there is no such entry.
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        Descriptor::read(&self.descriptors, index)
    }

    /// The driver's index; everything the driver wrote before it is visible after this.
    pub(super) fn available_index(&self) -> u16 {
        u16::from_le(load(&self.available, 2, Ordering::Acquire))
    }

    /// Whether the driver asked not to be interrupted (without `EVENT_IDX`).
    pub(super) fn interrupts_suppressed(&self) -> bool {
        const NO_INTERRUPT: u16 = 1;
        u16::from_le(load(&self.available, 0, Ordering::Relaxed)) & NO_INTERRUPT != 0
    }

    /// The head of the chain at position `index` (mod size) of the available ring.
    pub(super) fn available_entry(&self, index: u16) -> u16 {
        u16::from_le(load(&self.available, 4 + 2 * self.position(index), Ordering::Relaxed))
    }

    /// The used index at which the driver wants an interrupt (with `EVENT_IDX`).
    pub(super) fn used_event(&self) -> u16 {
        u16::from_le(load(&self.available, 4 + 2 * usize::from(self.size), Ordering::Relaxed))
    }

    /// Fills the entry at position `index` (mod size) of the used ring.
    pub(super) fn set_used_entry(&self, index: u16, head: u16, written: u32) {
        let at = 4 + 8 * self.position(index);
        let entry = u64::from(written) << 32 | u64::from(head);
        // Nobody looks before the index has passed it.
        if let Ok(place) = self.used.get_ref::<u64>(at) {
            place.store(entry.to_le());
        }
    }

    /// The index as it was last shown to the driver, whoever did.
    pub(super) fn used_index(&self) -> u16 {
        u16::from_le(load(&self.used, 2, Ordering::Acquire))
    }

    /// Shows the driver all entries before `index`.
    pub(super) fn set_used_index(&self, index: u16) {
        store(&self.used, 2, index.to_le(), Ordering::Release);
    }

    /// Asks the driver to kick or not to (without `EVENT_IDX`).
    pub(super) fn set_kicks_suppressed(&self, suppressed: bool) {
        store(&self.used, 0, u16::from(suppressed).to_le(), Ordering::Relaxed);
    }

    /// Asks the driver to kick when it passes `index` (with `EVENT_IDX`).
    pub(super) fn set_available_event(&self, index: u16) {
        store(&self.used, 4 + 8 * usize::from(self.size), index.to_le(), Ordering::Relaxed);
    }

    /// Ring positions count modulo the size, a power of two.
    fn position(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }
}

/// Resolves one area of a queue.
fn area(memory: &GuestMemory, addr: GuestAddress, len: usize) -> Option<VolatileSlice<'static>> {
    let slice = memory.get_slice(addr, len).ok()?;
    // SAFETY: the bytes are mapped (get_slice has checked), and stay so: `RingMemory` keeps a handle
    // on the guest memory as long as it keeps the slice. The lifetime is erased only because a
    // struct cannot borrow from itself.
    Some(unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), len) })
}

// An area's offsets are below its length by construction and aligned because the transport accepts
// only aligned areas, so that neither of these can fail; a failure is answered by the harmless value.

fn load(area: &VolatileSlice<'_>, at: usize, order: Ordering) -> u16 {
    area.load(at, order).unwrap_or(0)
}

fn store<T: vm_memory::AtomicAccess>(
    area: &VolatileSlice<'_>,
    at: usize,
    value: T,
    order: Ordering,
) {
    let stored = area.store(value, at, order);
    debug_assert!(stored.is_ok(), "offset {at} outside of a ring area");
}
