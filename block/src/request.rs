//! Requests and completions: the words spoken between a device model and an engine.

use std::io;

/// A position on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteOffset(pub u64);

/// `len` bytes from `start`. Whoever makes one has checked that its end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: ByteOffset,
    /// Length in bytes.
    pub len: u64,
}

/// What the completion of a write, discard or zeroing promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The data may be lost in a power cut until a later flush completes.
    Volatile,
    /// The data survives a power cut once the request completed.
    Durable,
}

/// What is asked of a disk. Data moves through the request's segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the segments from the disk at this offset.
    Read {
        /// Where on the disk.
        at: ByteOffset,
    },
    /// Write the segments to the disk at this offset.
    Write {
        /// Where on the disk.
        at: ByteOffset,
        /// What its completion promises.
        durability: Durability,
    },
    /// Compare the first half of the segments with what is on the disk at this offset and, if both are equal,
    /// write the other half there. Nothing is changed in between by any other request of this disk. Where
    /// they differ nothing is written, and the error holds a [`Miscompare`].
    CompareAndWrite {
        /// Where on the disk.
        at: ByteOffset,
        /// What its completion promises.
        durability: Durability,
    },
    /// Make every write that completed before this request was pushed durable.
    Flush,
    /// The range's content is no longer needed: give its space back. Afterwards it may read
    /// as anything.
    Discard {
        /// What to give back.
        range: ByteRange,
        /// What its completion promises.
        durability: Durability,
        /// Whether it may wait a moment for discards that complete the host's units of space together with it. If not,
        /// more of the same command follows.
        waits: bool,
    },
    /// Afterwards every byte of the range reads zero.
    WriteZeroes {
        /// What to zero.
        range: ByteRange,
        /// Whether the space may be given back.
        unmap: bool,
        /// What its completion promises.
        durability: Durability,
    },
}

/// Why a [`Operation::CompareAndWrite`] wrote nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} is not what it was said to be")]
pub struct Miscompare {
    /// The first byte that differs, counted from the start of the range.
    pub offset: u64,
}

/// A piece of memory of this process that a request reads from or writes into.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length; whoever made it promised in `Segment::new` that the
// memory stays valid until the request completes, on whichever thread that is.
unsafe impl Send for Segment {}

impl Segment {
    /// Describes `len` bytes at `base`.
    ///
    /// # Safety
    ///
    /// From the moment a request with this segment is pushed until its completion is reaped or
    /// its engine dropped, the memory must stay mapped readable and writable. Others may
    /// access it meanwhile only as racing hardware would (guest memory).
    #[must_use]
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// First byte.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "segments are not collections")]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Drops the first `bytes` (at most the length) from the segment.
    pub fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.iov_len);
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(bytes);
        self.0.iov_len -= bytes;
    }
}

/// The segments of one request. Lists are swapped rather than made: their capacity stays, so that the data path
/// does not allocate.
pub type Segments = Vec<Segment>;

/// One request. An engine owns it from `push` until it hands the completion out.
#[derive(Debug)]
pub struct Request<'a> {
    /// Below the engine's depth, and unique among its requests in flight.
    pub tag: u16,
    /// What is asked.
    pub op: Operation,
    /// Where the data is; empty for operations that move none. The engine takes the list and leaves a
    /// spent one in its place, to be cleared and filled for the next request.
    pub segments: &'a mut Segments,
}

/// The end of one request, exactly once for each that was pushed.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u16,
    /// `Ok` means that every byte moved, with the promised durability.
    pub result: io::Result<()>,
}
