//! Requests and completions: what a device model asks of an engine, and the answer.

use std::io;

use crate::Segments;

/// A position on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteOffset(pub u64);

/// `len` bytes from `start`. The end, `start + len`, does not overflow: the constructor of a range
/// checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: ByteOffset,
    /// Length in bytes.
    pub len: u64,
}

/// The promise of a completed write, discard or zeroing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The data may be lost in a power cut until a later flush completes.
    Volatile,
    /// The data survives a power cut once the request completed.
    Durable,
}

/// An operation on a disk. Data moves through the request's segments.
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
        /// The promise of its completion.
        durability: Durability,
    },
    /// Compare the first half of the segments with the disk's data at this offset and, if both are
    /// equal, write the other half there. The two steps are atomic with respect to all other
    /// requests of the disk. On a difference nothing is written and the error holds a
    /// [`Miscompare`]. SBC-4 5.4 COMPARE AND WRITE.
    CompareAndWrite {
        /// Where on the disk.
        at: ByteOffset,
        /// The promise of its completion.
        durability: Durability,
    },
    /// Make every write that completed before this request was pushed durable.
    Flush,
    /// Deallocate the range. Afterwards its content is undefined.
    Discard {
        /// The range to deallocate.
        range: ByteRange,
        /// The promise of its completion.
        durability: Durability,
        /// The command has further ranges: its device pushes the next one when this one completes.
        /// An engine delays the last range of a command only, to merge it with its
        /// neighbours.
        more_follows: bool,
    },
    /// Zero the range.
    WriteZeroes {
        /// The range to zero.
        range: ByteRange,
        /// Whether the host may deallocate the range.
        unmap: bool,
        /// The promise of its completion.
        durability: Durability,
    },
}

impl Operation {
    /// A read at this offset, or a write that promises no durability.
    #[must_use]
    pub fn volatile_transfer(at: ByteOffset, is_write: bool) -> Self {
        let durability = Durability::Volatile;
        if is_write { Self::Write { at, durability } } else { Self::Read { at } }
    }

    /// Whether it transfers data, so that discards are paced for it.
    pub(crate) fn is_transfer(self) -> bool {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::CompareAndWrite { .. } => true,
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => false,
        }
    }

    /// Whether its completion promises that data survives a power cut.
    pub(crate) fn is_durable(self) -> bool {
        match self {
            Self::Read { .. } => false,
            Self::Flush => true,
            Self::Write { durability, .. }
            | Self::CompareAndWrite { durability, .. }
            | Self::Discard { durability, .. }
            | Self::WriteZeroes { durability, .. } => durability == Durability::Durable,
        }
    }

    /// The bytes of the disk that it is about, with segments of `bytes` bytes; the end may
    /// overflow. Empty for a flush.
    pub(crate) fn range(self, bytes: u64) -> ByteRange {
        match self {
            Self::Read { at } | Self::Write { at, .. } => ByteRange { start: at, len: bytes },
            // Half of the data is compared only.
            Self::CompareAndWrite { at, .. } => ByteRange { start: at, len: bytes / 2 },
            Self::Flush => ByteRange { start: ByteOffset(0), len: 0 },
            Self::Discard { range, .. } | Self::WriteZeroes { range, .. } => range,
        }
    }
}

/// Why a [`Operation::CompareAndWrite`] wrote nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("miscompare at byte {offset}")]
pub struct Miscompare {
    /// Offset of the first byte that differs, from the start of the range.
    pub offset: u64,
}

/// One request. An engine owns it from `push` until it hands the completion out.
#[derive(Debug)]
pub struct Request<'a> {
    /// Below the engine's depth, and unique among its requests in flight.
    pub tag: u16,
    /// The operation.
    pub op: Operation,
    /// The data buffers; empty for operations that move no data. The engine takes the list and
    /// leaves another one in its place, with undefined content, for the caller to clear and
    /// reuse.
    pub segments: &'a mut Segments,
}

/// The completion of one request. Each pushed request completes exactly once.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u16,
    /// `Ok` means that every byte moved, with the promised durability.
    pub result: io::Result<()>,
}
