//! Guest memory by address, as the data path looks it up: a handful of regions whose places in this process
//! were resolved when the queue was activated.
//!
//! The invariant behind all unsafe code here: a region's bytes stay mapped at `host` as long as the map lives, which
//! keeps a handle on the guest memory, and each access lies within one region, which [`GuestMap::find`] has checked. The
//! guest may change the bytes at any time: they are only accessed volatile, and each is read once.

use std::marker::PhantomData;
use std::ptr::NonNull;

use ::block::Segment;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestMemory;

/// Size of one descriptor (Virtio 1.2 §2.7.5).
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// Two words at any address, of which Rust wants to know that they need not be aligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);

/// One run of guest memory.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

impl Region {
    /// The `len` bytes at `addr`; `None` if some of them lie elsewhere.
    #[inline(always)]
    fn find(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        // Wraps to far behind the region where it starts after the address.
        let offset = addr.0.wrapping_sub(self.start);
        if offset >= self.len || self.len - offset < len {
            return None;
        }
        // SAFETY: the offset lies within the region, by the check above.
        Some(unsafe { self.host.add(within(offset)) })
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct GuestMap {
    /// The largest, because most accesses go there.
    largest: Region,
    others: Box<[Region]>,
    memory: GuestMemory,
}

// SAFETY: the addresses point into guest memory, which `memory` keeps mapped wherever this value goes; every access
// through them is volatile, as for memory shared with the guest.
unsafe impl Send for GuestMap {}

impl GuestMap {
    /// Resolves where each region is.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let resolve = |region: &vm_memory::GuestRegionMmap| {
            let whole = region.as_volatile_slice().ok()?;
            let host = NonNull::new(whole.ptr_guard_mut().as_ptr())?;
            Some(Region { start: region.start_addr().0, len: whole.len() as u64, host })
        };
        let mut others: Vec<Region> = memory.iter().filter_map(resolve).collect();
        others.sort_by_key(|region| region.len);
        let nowhere = Region { start: 0, len: 0, host: NonNull::dangling() };
        let largest = others.pop().unwrap_or(nowhere);
        Self { largest, others: others.into(), memory: memory.clone() }
    }

    /// The memory behind it, for what is not done per request.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The `len` bytes at `addr` in this process; `None` where no region holds all of them.
    #[inline(always)]
    fn find(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        self.largest.find(addr, len).or_else(|| self.find_elsewhere(addr, len))
    }

    #[cold]
    fn find_elsewhere(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        self.others.iter().find_map(|region| region.find(addr, len))
    }

    /// Whether one region holds the byte at `addr`.
    #[inline]
    pub(crate) fn holds_byte(&self, addr: GuestAddress) -> bool {
        self.find(addr, 1).is_some()
    }

    /// Reads 16 bytes as two little-endian words; `None` where no region holds them.
    #[inline]
    pub(crate) fn load_16(&self, addr: GuestAddress) -> Option<[u64; 2]> {
        let words: NonNull<Unaligned> = self.find(addr, 16)?.cast();
        // SAFETY: the 16 bytes are mapped, by the invariant above.
        let first = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let second = unsafe { words.as_ptr().wrapping_add(1).read_volatile() };
        Some([u64::from_le(first.0), u64::from_le(second.0)])
    }

    /// Writes a byte; `false` where no region holds it.
    #[inline]
    pub(crate) fn store_byte(&self, addr: GuestAddress, byte: u8) -> bool {
        let Some(place) = self.find(addr, 1) else { return false };
        // SAFETY: the byte is mapped writable, by the invariant above.
        unsafe { place.write_volatile(byte) };
        true
    }

    /// The `len` bytes at `addr` for a request. The caller keeps the map until the request has completed. `None` where
    /// no region holds all of them.
    #[inline]
    pub(crate) fn segment(&self, addr: GuestAddress, len: u32) -> Option<Segment> {
        let base = self.find(addr, len.into())?;
        // SAFETY: the bytes are guest memory; the queue worker keeps its map until its engine has drained.
        Some(unsafe { Segment::new(base.as_ptr(), len as usize) })
    }

    /// The descriptor table of `entries` entries at `addr`. It need not be aligned.
    #[inline]
    pub(crate) fn table(&self, addr: GuestAddress, entries: u32) -> Option<Table<'_>> {
        let base = self.find(addr, u64::from(entries) * u64::from(DESCRIPTOR_BYTES))?.cast();
        Some(Table { base, entries, _map: PhantomData })
    }
}

/// An offset within a mapping of this process, which is below its length.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "no mapping is longer than the address space")]
const fn within(offset: u64) -> usize {
    offset as usize
}

/// A descriptor table in guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    base: NonNull<Unaligned>,
    entries: u32,
    _map: PhantomData<&'a GuestMap>,
}

impl Table<'_> {
    /// Entry `index`, as two little-endian words; `None` if there is none.
    #[inline]
    pub(crate) fn entry(&self, index: u16) -> Option<[u64; 2]> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let words = self.base.as_ptr().wrapping_add(2 * usize::from(index));
        // SAFETY: the table lies in one region, which the borrow of the map keeps mapped, and the entry in the table.
        let first = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let second = unsafe { words.wrapping_add(1).read_volatile() };
        Some([u64::from_le(first.0), u64::from_le(second.0)])
    }
}
