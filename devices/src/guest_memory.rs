//! Guest memory for the data path: a few regions, resolved to addresses of this process when a
//! queue is activated.
//!
//! Invariant behind all unsafe code here: the bytes of a region stay mapped at `host` as long as
//! the map exists, which keeps a reference to the guest memory; and each access is within one
//! region, which [`GuestMap::find`] checks. The guest may change the bytes at any time: accesses
//! are volatile, and each value is read once.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use ::block::{Segment, Segments};
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

/// The guest's memory.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Keeps guest memory out of core dumps and of child processes (MADV_DONTDUMP, MADV_DONTFORK,
/// madvise(2)): a dump must not contain the guest's secrets, and a page that a child shares is
/// copied on the next write, which a direct read of the host that is in flight does not follow.
///
/// # Errors
///
/// The kernel refuses.
pub fn isolate(region: &MmapRegion) -> io::Result<()> {
    for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
        // SAFETY: the range is the mapping that `region` owns. Neither advice changes its contents
        // in this process.
        unsafe { madvise(region.as_ptr().cast(), region.size(), advice) }?;
    }
    Ok(())
}

/// Size of a descriptor (Virtio 1.2 §2.7.5).
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// A word without alignment requirement.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct UnalignedWord(u64);

/// A contiguous range of guest memory.
#[derive(Clone, Copy, Debug)]
struct MappedRegion {
    /// Guest-physical address of the first byte.
    start: u64,
    /// Length in bytes.
    len: u64,
    /// Address of the first byte in this process.
    host: NonNull<u8>,
}

impl MappedRegion {
    /// The `len` bytes at `addr`; `None` if the region does not contain all of them.
    #[inline(always)]
    fn find(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        // Wraps to an offset far beyond the region if the region starts after `addr`.
        let offset = addr.0.wrapping_sub(self.start);
        if offset >= self.len || self.len - offset < len {
            return None;
        }
        // SAFETY: the offset is within the region, by the check above.
        Some(unsafe { self.host.add(in_mapping(offset)) })
    }
}

/// Guest memory by guest-physical address.
#[derive(Debug)]
pub struct GuestMap {
    /// The largest region, which most accesses hit.
    largest: MappedRegion,
    others: Box<[MappedRegion]>,
    memory: GuestMemory,
}

// SAFETY: the addresses point into guest memory, which `memory` keeps mapped wherever this value
// moves; every access through them is volatile, as for memory shared with the guest.
unsafe impl Send for GuestMap {}

impl GuestMap {
    /// Resolves all regions of `memory`.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let resolve = |region: &vm_memory::GuestRegionMmap| {
            let whole = region.as_volatile_slice().ok()?;
            let host = NonNull::new(whole.ptr_guard_mut().as_ptr())?;
            Some(MappedRegion { start: region.start_addr().0, len: whole.len() as u64, host })
        };
        let mut others: Vec<MappedRegion> = memory.iter().filter_map(resolve).collect();
        others.sort_by_key(|region| region.len);
        let empty = MappedRegion { start: 0, len: 0, host: NonNull::dangling() };
        let largest = others.pop().unwrap_or(empty);
        Self { largest, others: others.into(), memory: memory.clone() }
    }

    /// The memory itself, for accesses off the fast path.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The `len` bytes at `addr` in this process; `None` unless one region contains all of them.
    #[inline(always)]
    fn find(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        self.largest.find(addr, len).or_else(|| self.find_in_others(addr, len))
    }

    #[cold]
    fn find_in_others(&self, addr: GuestAddress, len: u64) -> Option<NonNull<u8>> {
        self.others.iter().find_map(|region| region.find(addr, len))
    }

    /// Whether the byte at `addr` is guest memory.
    #[inline]
    pub(crate) fn has_byte(&self, addr: GuestAddress) -> bool {
        self.find(addr, 1).is_some()
    }

    /// Reads 16 bytes as two little-endian words; `None` unless one region contains them.
    #[inline]
    pub(crate) fn load_16(&self, addr: GuestAddress) -> Option<[u64; 2]> {
        let words: NonNull<UnalignedWord> = self.find(addr, 16)?.cast();
        // SAFETY: the 16 bytes are mapped, by the invariant above.
        let first = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let second = unsafe { words.as_ptr().wrapping_add(1).read_volatile() };
        Some([u64::from_le(first.0), u64::from_le(second.0)])
    }

    /// Writes a byte; `false` if `addr` is not guest memory.
    #[inline]
    pub(crate) fn store_byte(&self, addr: GuestAddress, byte: u8) -> bool {
        let Some(target) = self.find(addr, 1) else { return false };
        // SAFETY: the byte is mapped writable, by the invariant above.
        unsafe { target.write_volatile(byte) };
        true
    }

    /// The `len` bytes at `addr` as a segment; `None` unless one region contains them. The caller
    /// keeps the map until the request that uses the segment has completed.
    #[inline]
    pub(crate) fn segment(&self, addr: GuestAddress, len: u32) -> Option<Segment> {
        let base = self.find(addr, len.into())?;
        // SAFETY: the bytes are guest memory; the worker keeps its map until its engine has
        // drained.
        Some(unsafe { Segment::new(base.as_ptr(), len as usize) })
    }

    /// Appends the `len` bytes at `addr` to `segments`, one segment for each region. `false` if
    /// some are not guest memory. The caller keeps the map as for [`GuestMap::segment`].
    #[inline]
    pub(crate) fn push_segments(
        &self,
        addr: GuestAddress,
        len: u32,
        segments: &mut Segments,
    ) -> bool {
        match self.segment(addr, len) {
            Some(segment) => {
                segments.push(segment);
                true
            }
            None => self.push_across_regions(addr, len, segments),
        }
    }

    #[cold]
    fn push_across_regions(&self, addr: GuestAddress, len: u32, segments: &mut Segments) -> bool {
        self.memory.get_slices(addr, len as usize).all(|slice| {
            let Ok(slice) = slice else { return false };
            // SAFETY: `get_slices` has checked that the bytes are guest memory; the worker keeps
            // its map until its engine has drained.
            segments.push(unsafe { Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()) });
            true
        })
    }

    /// The descriptor table with `entries` entries at `addr`, which need not be aligned. `None`
    /// unless one region contains it.
    #[inline]
    pub(crate) fn table(&self, addr: GuestAddress, entries: u32) -> Option<DescriptorTable<'_>> {
        let base = self.find(addr, u64::from(entries) * u64::from(DESCRIPTOR_BYTES))?.cast();
        Some(DescriptorTable { base, entries, _map: PhantomData })
    }
}

/// An offset in a mapping of this process.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "no mapping is longer than the address space")]
const fn in_mapping(offset: u64) -> usize {
    offset as usize
}

/// A descriptor table in guest memory.
#[derive(Clone, Copy)]
pub(crate) struct DescriptorTable<'a> {
    base: NonNull<UnalignedWord>,
    entries: u32,
    _map: PhantomData<&'a GuestMap>,
}

impl DescriptorTable<'_> {
    /// Entry `index` as two little-endian words; `None` if the table is shorter.
    #[inline]
    pub(crate) fn entry(&self, index: u16) -> Option<[u64; 2]> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let words = self.base.as_ptr().wrapping_add(2 * usize::from(index));
        // SAFETY: the table is within one region, which the borrow of the map keeps mapped, and the
        // entry is within the table.
        let first = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let second = unsafe { words.wrapping_add(1).read_volatile() };
        Some([u64::from_le(first.0), u64::from_le(second.0)])
    }
}
