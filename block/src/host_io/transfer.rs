//! The transfer of a read, write or compare-and-write: its calls, and what their results mean.

use std::io;

use super::bounce::{Bounce, is_aligned};
use super::compare::Compare;
use super::cursor::Cursor;
use super::host_call::HostOp;
use crate::host_file::DirectAlignment;
use crate::{Durability, Operation, Segments, total_len};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Disk offset of the rest, in bytes.
    at: u64,
    cursor: Cursor,
    /// Present if this is, or follows, the read of a compare-and-write.
    start_of_compare: Option<u64>,
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
                let (compare, cursor) = Compare::new(segments);
                Ok(Self {
                    start_of_compare: Some(at.0),
                    compare: Some(Box::new(compare)),
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
        (self.at, total_len(self.cursor.rest()) as u64)
    }

    pub(super) fn into_segments(self) -> Segments {
        match self.compare {
            Some(compare) => compare.into_segments(),
            None => self.cursor.into_segments(),
        }
    }

    /// Discards what was read of the disk, because others may have changed it.
    pub(super) fn invalidate(&mut self) {
        if let Some(bounce) = &mut self.bounce {
            bounce.invalidate();
        }
    }

    /// Whether the outstanding call is a write that promises durability.
    pub(super) fn is_durable_write(&self) -> bool {
        self.is_write && self.durable && !self.is_reading_block()
    }

    fn is_reading_block(&self) -> bool {
        self.bounce.as_ref().is_some_and(|bounce| bounce.is_reading_block())
    }

    /// The next call.
    pub(super) fn next_op(&mut self, direct: Option<DirectAlignment>) -> HostOp {
        self.bounce_if_misaligned(direct);
        let (at, left) = self.rest();
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

    fn bounce_if_misaligned(&mut self, direct: Option<DirectAlignment>) {
        let Some(alignment) = direct else { return };
        if self.bounce.is_none() && !is_aligned(self.cursor.rest(), self.at, alignment) {
            let (at, left) = self.rest();
            self.bounce = Some(Box::new(Bounce::new(alignment, at, left)));
        }
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
        direct: Option<DirectAlignment>,
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

    /// Starts the write of a compare-and-write whose read is complete. Returns whether the transfer is
    /// complete.
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
    io::Error::new(io::ErrorKind::WriteZero, "the host wrote nothing of a write")
}
