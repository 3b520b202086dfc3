//! The transfer of a read, write or compare-and-write: its calls, and what their results mean.

use std::io;
use std::sync::Arc;

use super::bounce::Bounce;
use super::compare::Compare;
use super::cursor::Cursor;
use super::host_call::HostOp;
use crate::buffer_pool::BufferPool;
use crate::host_file::DirectIo;
use crate::{Durability, Operation, Segments, total_len};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Disk offset of the rest, in bytes.
    at: u64,
    cursor: Cursor,
    /// Disk offset of a compare-and-write.
    start_of_compare: Option<u64>,
    /// The segments of a compare-and-write before its first call: memory for the comparison is not
    /// allocated earlier.
    to_compare: Option<Segments>,
    is_write: bool,
    /// The write promises durability.
    durable: bool,
    bounce: Option<Box<Bounce>>,
    /// Until the comparison: the cursor reads into it.
    compare: Option<Box<Compare>>,
}

impl Transfer {
    /// The transfer of `op`; gives the segments back if `op` transfers no data.
    pub(super) fn new(op: Operation, segments: Segments) -> Result<Self, Segments> {
        let is_durable = |durability| durability == Durability::Durable;
        let plain = |at, cursor, is_write, durable| Self {
            at,
            cursor,
            start_of_compare: None,
            to_compare: None,
            is_write,
            durable,
            bounce: None,
            compare: None,
        };
        match op {
            Operation::Read { at } => Ok(plain(at.0, Cursor::new(segments), false, false)),
            Operation::Write { at, durability } => {
                Ok(plain(at.0, Cursor::new(segments), true, is_durable(durability)))
            }
            Operation::CompareAndWrite { at, durability } => {
                let cursor = Cursor::new(Segments::new());
                Ok(Self {
                    start_of_compare: Some(at.0),
                    to_compare: Some(segments),
                    ..plain(at.0, cursor, false, is_durable(durability))
                })
            }
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                Err(segments)
            }
        }
    }

    /// Start of the rest and its length, in bytes.
    pub(super) fn rest(&self) -> (u64, u64) {
        let len = match &self.to_compare {
            Some(segments) => total_len(segments) / 2,
            None => total_len(self.cursor.rest()),
        };
        (self.at, len as u64)
    }

    /// Bytes of memory that the next call needs and that are not allocated yet.
    pub(super) fn memory_needed(&self, direct: Option<DirectIo>) -> u64 {
        if let Some(segments) = &self.to_compare {
            // The data found, the data expected, and a bounce buffer for either half.
            let (at, len) = self.rest();
            let bounce = direct.map_or(0, |direct| Bounce::size_for(direct, at, len));
            return (total_len(segments) + bounce) as u64;
        }
        let (at, left) = self.rest();
        self.to_bounce(direct).map_or(0, |direct| Bounce::size_for(direct, at, left) as u64)
    }

    pub(super) fn into_segments(self) -> Segments {
        match (self.to_compare, self.compare) {
            (Some(segments), _) => segments,
            (None, Some(compare)) => compare.into_segments(),
            (None, None) => self.cursor.into_segments(),
        }
    }

    /// Frees the bounce buffer. What it holds of the disk may have changed, too.
    pub(super) fn free_memory(&mut self) {
        self.bounce = None;
    }

    /// Whether the outstanding call is a write that promises durability.
    pub(super) fn is_durable_write(&self) -> bool {
        self.is_write && self.durable && !self.is_reading_block()
    }

    fn is_reading_block(&self) -> bool {
        self.bounce.as_ref().is_some_and(|bounce| bounce.is_reading_block())
    }

    /// The next call.
    pub(super) fn next_op(
        &mut self,
        direct: Option<DirectIo>,
        buffers: &Arc<BufferPool>,
    ) -> HostOp {
        if let Some(segments) = self.to_compare.take() {
            let (compare, cursor) = Compare::new(segments);
            (self.compare, self.cursor) = (Some(Box::new(compare)), cursor);
        }
        let (at, left) = self.rest();
        if let Some(direct) = self.to_bounce(direct) {
            self.bounce = Some(Box::new(Bounce::new(buffers, direct, at, left)));
        }
        let durable = self.durable;
        let Some(bounce) = &mut self.bounce else {
            let buffer = self.cursor.buffer();
            return match self.is_write {
                true => HostOp::Write { buffer, at, durable },
                false => HostOp::Read { buffer, at },
            };
        };
        if !self.is_write {
            let (buffer, at) = bounce.read(at, left);
            return HostOp::Read { buffer, at };
        }
        if let Some((buffer, at)) = bounce.unread_block(at, left) {
            return HostOp::Read { buffer, at };
        }
        let (buffer, at) = bounce.write(Some(self.cursor.rest()));
        HostOp::Write { buffer, at, durable }
    }

    /// The requirements of direct I/O if the rest needs a bounce buffer that is not allocated yet.
    fn to_bounce(&self, direct: Option<DirectIo>) -> Option<DirectIo> {
        let accepts =
            |direct: &DirectIo| direct.accepts(self.cursor.rest(), self.at, self.is_write);
        direct.filter(|direct| self.bounce.is_none() && !accepts(direct))
    }

    /// Takes the result of the outstanding call, `count` bytes. Returns whether the transfer is
    /// complete.
    ///
    /// # Errors
    ///
    /// The host has transferred nothing, or the comparison found a difference.
    pub(super) fn complete_call(
        &mut self,
        count: usize,
        direct: Option<DirectIo>,
    ) -> io::Result<bool> {
        let count = match (&mut self.bounce, direct) {
            (Some(bounce), _) if bounce.is_reading_block() => {
                return if bounce.complete_block(count) { Ok(false) } else { Err(end_of_file()) };
            }
            (Some(bounce), _) if self.is_write => bounce.complete_write(count),
            (Some(bounce), _) => bounce.complete_read(self.cursor.rest(), count),
            // The rest of a partly written block is written again with all of the block.
            (None, Some(direct)) if self.is_write => count - count % direct.offset as usize,
            (None, _) => count,
        };
        self.cursor.advance(count);
        self.at += count as u64;
        if self.cursor.is_spent() {
            return self.compare();
        }
        match self.is_write {
            _ if count > 0 => Ok(false),
            true => Err(no_progress()),
            false => Err(end_of_file()),
        }
    }

    /// Starts the write of a compare-and-write whose read is complete. Returns whether the transfer
    /// is complete.
    fn compare(&mut self) -> io::Result<bool> {
        let (Some(compare), Some(start)) = (self.compare.take(), self.start_of_compare) else {
            return Ok(true);
        };
        match compare.finish() {
            Ok(cursor) => {
                (self.cursor, self.is_write, self.at, self.bounce) = (cursor, true, start, None);
                Ok(false)
            }
            Err((miscompare, segments)) => {
                self.cursor = Cursor::new(segments);
                Err(io::Error::other(miscompare))
            }
        }
    }
}

pub(super) fn end_of_file() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before the disk does")
}

pub(super) fn no_progress() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the host wrote no bytes of a write")
}
