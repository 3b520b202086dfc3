//! Aligned memory between the disk and buffers or ranges that direct I/O does not accept, or that
//! may change meanwhile.
//!
//! A bounce buffer covers an aligned window of the disk. A read fills the window and copies out its
//! middle. A write whose ends lie within blocks first reads those blocks, then writes the whole
//! window; the range lock keeps other writes out of it meanwhile.

use std::sync::Arc;

use super::host_call::IoBuffer;
use crate::buffer_pool::{BufferPool, PooledBuffer};
use crate::host_file::DirectIo;
use crate::page::PageBuffer;
use crate::{Segment, gather, scatter, total_len};

/// Maximum size of a bounce buffer in bytes. Larger requests are bounced in parts.
const MAX_BOUNCE: usize = 256 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Bounce {
    pages: PooledBuffer,
    /// Alignment of the window, a power of two of at most a page.
    unit: usize,
    /// Disk offset of the window.
    start: u64,
    /// Length of the window; 0 while it is not placed.
    len: usize,
    /// The requested bytes: their start within the window, and their count.
    lead: usize,
    wanted: usize,
    /// Blocks at the ends of the window that a write has to read first, as offsets within it.
    unread: [Option<usize>; 2],
}

impl Bounce {
    /// Size in bytes of the buffer for up to `left` bytes at `at`, whole pages.
    pub(super) fn size_for(direct: DirectIo, at: u64, left: u64) -> usize {
        let unit = direct.offset as usize;
        let lead = offset_within(at, unit);
        let max = usize::try_from(left).map_or(MAX_BOUNCE, |left| left.min(MAX_BOUNCE));
        PageBuffer::rounded(lead + max).min(MAX_BOUNCE)
    }

    /// A buffer for up to `left` bytes at `at`, not placed yet.
    pub(super) fn new(pool: &Arc<BufferPool>, direct: DirectIo, at: u64, left: u64) -> Self {
        let unit = direct.offset as usize;
        let pages = pool.take(Self::size_for(direct, at, left));
        Self { pages, unit, start: 0, len: 0, lead: 0, wanted: 0, unread: [None; 2] }
    }

    /// Removes the window; the next call places it again.
    fn unplace(&mut self) {
        self.len = 0;
    }

    /// Places the window over as much as fits of `left` bytes at `at`, unless it is placed already.
    fn place(&mut self, at: u64, left: u64) {
        if self.len > 0 {
            return;
        }
        let capacity = self.pages.len();
        self.lead = offset_within(at, self.unit);
        self.start = at - self.lead as u64;
        let max = capacity - self.lead;
        self.wanted = usize::try_from(left).map_or(max, |left| left.min(max));
        let end = self.lead + self.wanted;
        self.len = end.next_multiple_of(self.unit);
        let last = self.len - self.unit;
        let head = (self.lead > 0).then_some(0);
        let tail = (end < self.len && head != Some(last)).then_some(last);
        self.unread = [head, tail];
    }

    /// Buffer and disk offset of a read of up to `left` bytes at `at`.
    pub(super) fn read(&mut self, at: u64, left: u64) -> (IoBuffer, u64) {
        self.place(at, left);
        (self.part(0, self.len), self.start)
    }

    /// Takes the result of a read, `count` bytes. Returns how many of the requested bytes were
    /// copied to the segments.
    pub(super) fn complete_read(&mut self, segments: &[Segment], count: usize) -> usize {
        let bytes = count.saturating_sub(self.lead).min(self.wanted);
        let data = self.pages.as_slice().get(self.lead..self.lead + bytes).unwrap_or_default();
        scatter(data, segments);
        self.unplace();
        bytes
    }

    /// Buffer and disk offset of a block that has to be read before up to `left` bytes at `at` can
    /// be written; `None` if there is none.
    pub(super) fn unread_block(&mut self, at: u64, left: u64) -> Option<(IoBuffer, u64)> {
        self.place(at, left);
        let offset = self.unread.iter().flatten().copied().next()?;
        Some((self.part(offset, self.unit), self.start + offset as u64))
    }

    /// Whether the outstanding call reads a block at an end of the window.
    pub(super) fn is_reading_block(&self) -> bool {
        self.unread.iter().any(Option::is_some)
    }

    /// Takes the result of the read of a block; `false` if the disk ends within it.
    pub(super) fn complete_block(&mut self, count: usize) -> bool {
        if let Some(read) = self.unread.iter_mut().find(|block| block.is_some()) {
            *read = None;
        }
        count >= self.unit
    }

    /// Buffer and disk offset of the write, once all blocks are read. Without segments: of zeroes.
    pub(super) fn write(&mut self, segments: Option<&[Segment]>) -> (IoBuffer, u64) {
        let end = self.lead + self.wanted;
        let data = self.pages.as_mut_slice().get_mut(self.lead..end).unwrap_or_default();
        match segments {
            Some(segments) => {
                let gathered = gather(segments, data);
                debug_assert!(gathered == self.wanted || gathered == total_len(segments));
            }
            None => data.fill(0),
        }
        (self.part(0, self.len), self.start)
    }

    /// Takes the result of a write, `count` bytes. Returns how many of the requested bytes are
    /// written in whole blocks.
    pub(super) fn complete_write(&mut self, count: usize) -> usize {
        let blocks = count - count % self.unit;
        let bytes = blocks.saturating_sub(self.lead).min(self.wanted);
        self.unplace();
        bytes
    }

    /// `len` bytes of the buffer from `offset` on.
    fn part(&mut self, offset: usize, len: usize) -> IoBuffer {
        let base = self.pages.as_mut_slice().as_mut_ptr().wrapping_add(offset);
        IoBuffer::contiguous(base, len)
    }
}

fn offset_within(at: u64, unit: usize) -> usize {
    // Below the unit, which is at most a page.
    usize::try_from(at % unit as u64).unwrap_or(0)
}
