//! A call in flight in the simulated kernel, divided at sector boundaries.

use std::fmt;

use super::content::SECTOR;
use super::entry::{Entry, Opcode};
use super::medium::Version;
use fixtures::Random;

/// Errno values of Linux.
pub(super) mod errno {
    pub(crate) const INTR: i32 = 4;
    pub(crate) const IO: i32 = 5;
    pub(crate) const AGAIN: i32 = 11;
    pub(crate) const BUSY: i32 = 16;
    pub(crate) const INVAL: i32 = 22;
    pub(crate) const NOSPC: i32 = 28;
    pub(crate) const TIME: i32 = 62;
    pub(crate) const OPNOTSUPP: i32 = 95;
    pub(crate) const CANCELED: i32 = 125;
}

/// Outcome of a call, drawn when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Fails with an errno before it transfers anything.
    Refuse(i32),
    /// Fails with an errno after a number of sectors.
    Fail(i32, usize),
    /// Loses dirty data and fails with EIO.
    LoseAndFail,
    /// Transfers this many bytes.
    Short(usize),
    Complete,
}

/// Part of a call within one sector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) sector: usize,
    /// Offset in the sector.
    pub(super) offset: usize,
    pub(super) len: usize,
    /// Offset in the call's memory.
    pub(super) at: usize,
}

/// A call in flight.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) ring: usize,
    pub(super) entry: Entry,
    /// Its process has died: no engine takes its result.
    pub(super) orphaned: bool,
    pub(super) outcome: Outcome,
    /// A sync makes the versions before this one stable.
    pub(super) version: Version,
    start: usize,
    /// Bytes to transfer.
    moves: usize,
    /// Remaining chunks in reverse order.
    left: Vec<Chunk>,
}

impl Call {
    pub(super) fn new(
        ring: usize,
        entry: Entry,
        outcome: Outcome,
        in_any_order: bool,
        version: Version,
        random: &mut Random,
    ) -> Self {
        let total = usize::try_from(entry.total()).unwrap();
        let moves = match outcome {
            Outcome::Refuse(_) => 0,
            Outcome::Fail(_, sectors) => total.min(sectors * SECTOR),
            Outcome::Short(bytes) => bytes,
            Outcome::LoseAndFail | Outcome::Complete => total,
        };
        let start = usize::try_from(entry.at).unwrap();
        let mut left = Vec::new();
        let mut at = 0;
        while at < moves {
            let (sector, offset) = ((start + at) / SECTOR, (start + at) % SECTOR);
            let len = (SECTOR - offset).min(moves - at);
            left.push(Chunk { sector, offset, len, at });
            at += len;
        }
        left.reverse();
        if in_any_order {
            for upper in (1..left.len()).rev() {
                left.swap(upper, random.below(upper + 1));
            }
        }
        Self { ring, entry, orphaned: false, outcome, version, start, moves, left }
    }

    /// The next chunk to transfer.
    pub(super) fn next_chunk(&mut self) -> Option<Chunk> {
        self.left.pop()
    }

    pub(super) fn moved(&self) -> usize {
        self.moves
    }

    pub(super) fn sectors_moved(&self) -> std::ops::Range<usize> {
        self.start / SECTOR..(self.start + self.moves).div_ceil(SECTOR)
    }

    pub(super) fn touches(&self, sector: usize) -> bool {
        self.sectors_moved().contains(&sector)
    }

    /// Whether it refers to the open file description with the lock on the image: all calls do
    /// except `fdatasync`, which changes no data.
    pub(super) fn refers_to_locked_file(&self) -> bool {
        self.entry.opcode != Opcode::Sync
    }

    /// Whether it is a write with `RWF_DSYNC`.
    pub(super) fn is_durable(&self) -> bool {
        self.entry.opcode == Opcode::Write(true)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { opcode, user_data, at, .. } = &self.entry;
        let (at, total) = (*at as f64 / 512.0, self.entry.total() as f64 / 512.0);
        write!(
            f,
            "ring {} tag {user_data} {opcode:?} sector {at} +{total}, {:?}",
            self.ring, self.outcome
        )
    }
}
