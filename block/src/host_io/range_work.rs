//! Discarding or zeroing a range: its calls, the fallback from one to the next, and what their
//! results mean.

use std::io;
use std::sync::Arc;

use super::bounce::Bounce;
use super::host_call::HostOp;
use super::range_split::{Piece, RangeSplit};
use super::transfer::{end_of_file, no_progress};
use super::zeroes::zeroes;
use crate::Operation;
use crate::buffer_pool::BufferPool;
use crate::host_file::{DirectIo, HostFile};

/// How the host is asked to discard or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// [`HostOp::Discard`].
    Discard,
    /// [`HostOp::PunchHole`].
    PunchHole,
    /// [`HostOp::ZeroRange`].
    ZeroRange,
    /// Writes of zeroes.
    Write,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct RangeWork {
    /// The range must read zero afterwards.
    zeroes: bool,
    method: Method,
    /// The current piece.
    at: u64,
    left: u64,
    /// Length of the outstanding discard or zeroing call.
    chunk: u64,
    /// The chunk was discarded once, to zero it, and has to be a second time.
    repeats: bool,
    /// Pieces to be zeroed after the current one.
    ends: [Piece; 2],
    bounce: Option<Box<Bounce>>,
}

/// The reaction to the failure of a method.
pub(super) enum Fallback {
    /// The next method is tried.
    Next,
    /// The host cannot discard. A discard is advice, so the request succeeds.
    Ignore,
    /// There is no other method.
    Fail,
}

impl RangeWork {
    /// The work of a discard or zeroing; `None` for any other operation.
    pub(super) fn new(op: Operation, file: &HostFile) -> Option<Self> {
        let (range, method) = match op {
            Operation::Discard { range, .. } if file.is_block_device() => (range, Method::Discard),
            Operation::WriteZeroes { range, unmap: true, .. }
                if file.zeroes_by_discarding().is_some() =>
            {
                (range, Method::Discard)
            }
            Operation::Discard { range, .. }
            | Operation::WriteZeroes { range, unmap: true, .. } => (range, Method::PunchHole),
            Operation::WriteZeroes { range, unmap: false, .. } => (range, Method::ZeroRange),
            _ => return None,
        };
        let RangeSplit { middle, ends } = RangeSplit::of(range, op, file);
        let mut work = Self {
            zeroes: matches!(op, Operation::WriteZeroes { .. }),
            method,
            at: middle.at,
            left: middle.len,
            chunk: 0,
            repeats: false,
            ends,
            bounce: None,
        };
        if middle.len == 0 {
            work.next_end();
        }
        Some(work)
    }

    /// Starts with the next end of the range; `false` if none is left.
    fn next_end(&mut self) -> bool {
        let Some(end) = self.ends.iter_mut().find(|end| end.len > 0) else { return false };
        let Piece { at, len } = std::mem::take(end);
        (self.at, self.left, self.method, self.bounce) = (at, len, Method::Write, None);
        true
    }

    /// Whether there is nothing to do: a discard of partial granules only.
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Start of the current piece's rest and its length, in bytes.
    pub(super) fn rest(&self) -> (u64, u64) {
        (self.at, self.left)
    }

    /// Whether the next call discards a chunk that need not read zero, so that it can be deferred.
    pub(super) fn is_paced(&self) -> bool {
        !self.zeroes && self.left > 0 && matches!(self.method, Method::Discard | Method::PunchHole)
    }

    /// Whether the next call makes the host zero a range, which may take it long.
    pub(super) fn is_zeroing_call(&self) -> bool {
        self.zeroes && self.method != Method::Write
    }

    /// Whether the next call is an fallocate(2), which locks the page cache of a block device.
    pub(super) fn locks_page_cache(&self) -> bool {
        matches!(self.method, Method::PunchHole | Method::ZeroRange)
    }

    /// Whether the outstanding call is a discard of blocks.
    pub(super) fn is_block_discard(&self) -> bool {
        self.method == Method::Discard
    }

    /// Whether the outstanding call zeroes by discarding. Each chunk is discarded twice (ADR 12):
    /// the first call zeroes it; the second makes that durable with the next flush, and drops
    /// from the page cache what was read before the first had completed.
    pub(super) fn is_zeroing_discard(&self) -> bool {
        self.zeroes && self.method == Method::Discard
    }

    /// Bytes of memory that the next call needs and that are not allocated yet.
    pub(super) fn memory_needed(&self, direct: Option<DirectIo>) -> u64 {
        match direct {
            Some(direct) if self.bounce.is_none() && self.is_misaligned_write(direct) => {
                Bounce::size_for(direct, self.at, self.left) as u64
            }
            _ => 0,
        }
    }

    fn is_misaligned_write(&self, direct: DirectIo) -> bool {
        self.method == Method::Write && !(self.at | self.left).is_multiple_of(direct.offset.into())
    }

    /// Frees the bounce buffer. What it holds of the disk may have changed, too.
    pub(super) fn free_memory(&mut self) {
        self.bounce = None;
    }

    /// The next call, for at most `limit` bytes if it discards or zeroes a range.
    pub(super) fn next_op(
        &mut self,
        limit: u64,
        direct: Option<DirectIo>,
        buffers: &Arc<BufferPool>,
    ) -> HostOp {
        let (at, len) = (self.at, self.left.min(limit));
        self.chunk = len;
        match self.method {
            Method::Discard => HostOp::Discard { at, len },
            Method::PunchHole => HostOp::PunchHole { at, len },
            Method::ZeroRange => HostOp::ZeroRange { at, len },
            Method::Write => self.write_zeroes(direct, buffers),
        }
    }

    fn write_zeroes(&mut self, direct: Option<DirectIo>, buffers: &Arc<BufferPool>) -> HostOp {
        let (at, left) = (self.at, self.left);
        let durable = false; // A sync follows if needed.
        if let (None, Some(direct)) = (&self.bounce, direct)
            && self.is_misaligned_write(direct)
        {
            self.bounce = Some(Box::new(Bounce::new(buffers, direct, at, left)));
        }
        let Some(bounce) = &mut self.bounce else {
            return HostOp::Write { buffer: zeroes(left), at, durable };
        };
        if let Some((buffer, at)) = bounce.unread_block(at, left) {
            return HostOp::Read { buffer, at };
        }
        let (buffer, at) = bounce.write(None);
        HostOp::Write { buffer, at, durable }
    }

    /// Takes the result of the outstanding call, `count` bytes if it was a write. Returns whether
    /// the range is complete, and how many bytes were deallocated.
    ///
    /// # Errors
    ///
    /// The host has written nothing.
    pub(super) fn complete_call(
        &mut self,
        count: usize,
        direct: Option<DirectIo>,
    ) -> io::Result<(bool, u64)> {
        if self.method == Method::Write {
            return Ok((self.complete_write(count, direct)?, 0));
        }
        self.repeats = self.is_zeroing_discard() && !self.repeats;
        if self.repeats {
            return Ok((false, 0));
        }
        let deallocated = if self.method == Method::ZeroRange { 0 } else { self.chunk };
        self.at += self.chunk;
        self.left -= self.chunk;
        Ok((self.left == 0 && !self.next_end(), deallocated))
    }

    fn complete_write(&mut self, count: usize, direct: Option<DirectIo>) -> io::Result<bool> {
        let count = match (&mut self.bounce, direct) {
            (Some(bounce), _) if bounce.is_reading_block() => {
                return if bounce.complete_block(count) { Ok(false) } else { Err(end_of_file()) };
            }
            (Some(bounce), _) => bounce.complete_write(count),
            (None, Some(direct)) => count - count % direct.offset as usize,
            (None, None) => count,
        } as u64;
        self.at += count;
        self.left = self.left.saturating_sub(count);
        match self.left {
            0 => Ok(!self.next_end()),
            _ if count > 0 => Ok(false),
            _ => Err(no_progress()),
        }
    }

    /// Moves on to the next method, after the host has refused one for good. A discard may come to
    /// nothing; zeroing may not, and never deallocates without permission.
    pub(super) fn fall_back(&mut self) -> Fallback {
        self.method = match self.method {
            Method::PunchHole if !self.zeroes => return Fallback::Ignore,
            Method::Discard => Method::PunchHole,
            Method::PunchHole => Method::ZeroRange,
            Method::ZeroRange => Method::Write,
            Method::Write => return Fallback::Fail,
        };
        Fallback::Next
    }
}
