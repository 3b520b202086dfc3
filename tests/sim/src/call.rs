//! A call the simulated kernel works on, cut at the sectors' boundaries.

use std::fmt;

use super::content::SECTOR;
use super::entry::{Ask, Entry};
use super::media::Version;
use super::random::Random;

/// The errors of Linux used here.
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

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Not begun.
    Refuse(i32),
    /// Fails after so many sectors.
    Fail(i32, usize),
    /// Loses dirty data, and fails.
    LoseAndFail,
    /// Moves so many bytes.
    Short(usize),
    Finish,
}

/// Part of a call within one sector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) sector: usize,
    /// Within the sector.
    pub(super) offset: usize,
    pub(super) len: usize,
    /// Within the call's memory.
    pub(super) at: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) ring: usize,
    pub(super) entry: Entry,
    pub(super) fate: Fate,
    /// What a sync has to make stable: the versions before this one.
    pub(super) version: Version,
    start: usize,
    /// Bytes that move.
    moves: usize,
    /// What is still to do, last first.
    left: Vec<Chunk>,
}

impl Call {
    pub(super) fn new(
        ring: usize,
        entry: Entry,
        fate: Fate,
        in_any_order: bool,
        version: Version,
        random: &mut Random,
    ) -> Self {
        let total = usize::try_from(entry.total()).unwrap();
        let moves = match fate {
            Fate::Refuse(_) => 0,
            Fate::Fail(_, sectors) => total.min(sectors * SECTOR),
            Fate::Short(bytes) => bytes,
            Fate::LoseAndFail | Fate::Finish => total,
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
        Self { ring, entry, fate, version, start, moves, left }
    }

    /// What to move next.
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

    /// Whether it answers for the durability of what it moves.
    pub(super) fn is_durable(&self) -> bool {
        self.entry.ask == Ask::Write(true)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { ask, user_data, at, .. } = &self.entry;
        let (at, total) = (*at as f64 / 512.0, self.entry.total() as f64 / 512.0);
        write!(
            f,
            "ring {} tag {user_data} {ask:?} sector {at} +{total}, {:?}",
            self.ring, self.fate
        )
    }
}
