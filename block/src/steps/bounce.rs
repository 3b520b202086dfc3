//! Aligned memory between the disk and what direct I/O does not take as it is.
//!
//! A bounce buffer lies over a window of the disk that is aligned at both ends. A read fills the window
//! and hands out its middle. A write whose ends lie within blocks first reads those blocks, then
//! writes the whole window: that nobody else writes them meanwhile is the range lock's business.

use super::cursor::Memory;
use crate::host_file::DirectAlignment;
use crate::page::{PAGE, Page};
use crate::{Segment, total_len};

/// The most bytes a bounce buffer holds: what a guest can make the host allocate for one request.
const MAX_BOUNCE: usize = 256 << 10;

/// Whether direct I/O takes the segments at this offset as they are.
pub(super) fn fits(segments: &[Segment], at: u64, alignment: DirectAlignment) -> bool {
    let (addresses, lens) = segments.iter().fold((0, 0), |(addresses, lens), segment| {
        (addresses | segment.base().addr(), lens | segment.len())
    });
    addresses.is_multiple_of(alignment.memory as usize)
        && (lens as u64 | at).is_multiple_of(u64::from(alignment.offset))
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Bounce {
    pages: Vec<Page>,
    /// The alignment of the window, a power of two of at most a page.
    unit: usize,
    /// Where on the disk the window starts.
    start: u64,
    /// Length of the window; 0 when it is to be laid anew.
    len: usize,
    /// The bytes of the window that are asked for.
    lead: usize,
    wanted: usize,
    /// Blocks at the ends of the window that a write has to read first, by their place in it.
    unread: [Option<usize>; 2],
}

impl Bounce {
    /// Makes a buffer for up to `left` bytes at `at`, not yet laid anywhere.
    pub(super) fn new(alignment: DirectAlignment, at: u64, left: u64) -> Self {
        let unit = alignment.offset as usize;
        let lead = offset_within(at, unit);
        let most = usize::try_from(left).map_or(MAX_BOUNCE, |left| left.min(MAX_BOUNCE));
        let bytes = (lead + most).next_multiple_of(unit).min(MAX_BOUNCE);
        let pages = vec![Page::ZERO; bytes.div_ceil(PAGE)];
        Self { pages, unit, start: 0, len: 0, lead: 0, wanted: 0, unread: [None; 2] }
    }

    /// Forgets what it holds: the disk may have changed.
    pub(super) fn lift(&mut self) {
        self.len = 0;
    }

    /// Lays the window over as much as fits of `left` bytes at `at`, unless it lies there.
    fn lay(&mut self, at: u64, left: u64) {
        if self.len > 0 {
            return;
        }
        let capacity = self.pages.len() * PAGE;
        self.lead = offset_within(at, self.unit);
        self.start = at - self.lead as u64;
        let most = capacity - self.lead;
        self.wanted = usize::try_from(left).map_or(most, |left| left.min(most));
        let end = self.lead + self.wanted;
        self.len = end.next_multiple_of(self.unit);
        let last = self.len - self.unit;
        let head = (self.lead > 0).then_some(0);
        let tail = (end < self.len && head != Some(last)).then_some(last);
        self.unread = [head, tail];
    }

    /// What to read for `left` bytes at `at`, and where.
    pub(super) fn read(&mut self, at: u64, left: u64) -> (Memory, u64) {
        self.lay(at, left);
        (Memory::buffer(self.base(), self.len), self.start)
    }

    /// Copies out what a read of `count` bytes brought; returns how much was asked for.
    pub(super) fn filled(&mut self, segments: &[Segment], count: usize) -> usize {
        let bytes = count.saturating_sub(self.lead).min(self.wanted);
        self.scatter(segments, bytes);
        self.lift();
        bytes
    }

    /// The block to read before `left` bytes at `at` can be written, and where it is.
    pub(super) fn missing(&mut self, at: u64, left: u64) -> Option<(Memory, u64)> {
        self.lay(at, left);
        let place = self.unread.iter().flatten().copied().next()?;
        let memory = Memory::buffer(self.base().wrapping_add(place), self.unit);
        Some((memory, self.start + place as u64))
    }

    /// Whether the last call was for a missing block.
    pub(super) fn is_reading(&self) -> bool {
        self.unread.iter().any(Option::is_some)
    }

    /// Takes the answer to a missing block; `false` if the disk ends within it.
    pub(super) fn found(&mut self, count: usize) -> bool {
        if let Some(read) = self.unread.iter_mut().find(|place| place.is_some()) {
            *read = None;
        }
        count >= self.unit
    }

    /// What to write and where, once nothing is missing. Without segments: zeroes.
    pub(super) fn write(&mut self, segments: Option<&[Segment]>) -> (Memory, u64) {
        match segments {
            Some(segments) => self.gather(segments),
            None => self.clear(),
        }
        (Memory::buffer(self.base(), self.len), self.start)
    }

    /// Takes the answer to a write; returns how much of what was asked for is written for good.
    pub(super) fn written(&mut self, count: usize) -> usize {
        let blocks = count - count % self.unit;
        let bytes = blocks.saturating_sub(self.lead).min(self.wanted);
        self.lift();
        bytes
    }

    fn base(&mut self) -> *mut u8 {
        self.pages.as_mut_ptr().cast()
    }

    fn gather(&mut self, segments: &[Segment]) {
        let base = self.base().wrapping_add(self.lead);
        let mut filled = 0;
        for segment in segments {
            let len = segment.len().min(self.wanted - filled);
            // SAFETY: the segment is valid for its length until the request completes
            // (`Segment::new`); the `wanted` bytes behind `lead` are within the pages, which nobody
            // else refers to.
            unsafe {
                std::ptr::copy_nonoverlapping(segment.base(), base.wrapping_add(filled), len);
            }
            filled += len;
        }
        debug_assert!(filled == self.wanted || filled == total_len(segments));
    }

    fn clear(&mut self) {
        let base = self.base().wrapping_add(self.lead);
        // SAFETY: the `wanted` bytes behind `lead` are within the pages, which nobody else refers to.
        unsafe { base.write_bytes(0, self.wanted) };
    }

    fn scatter(&mut self, segments: &[Segment], bytes: usize) {
        let base = self.base().wrapping_add(self.lead).cast_const();
        let mut taken = 0;
        for segment in segments {
            let len = segment.len().min(bytes - taken);
            // SAFETY: as in `gather`: `bytes` are at most `wanted`.
            unsafe { std::ptr::copy_nonoverlapping(base.wrapping_add(taken), segment.base(), len) };
            taken += len;
        }
    }
}

fn offset_within(at: u64, unit: usize) -> usize {
    // Below the unit, which is at most a page.
    usize::try_from(at % unit as u64).unwrap_or(0)
}
