//! Where a request is kept by its tag: of a plain transfer, all there is of it.

use crate::{ByteOffset, Durability, Operation, Segment, Segments};

/// A request's place. That is all there is of a plain transfer, which the host was asked for once.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) state: State,
    /// What the host has to answer for a plain transfer to be complete.
    pub(super) bytes: u32,
    /// Where on the disk a plain transfer is.
    pub(super) at: ByteOffset,
    /// Its data, if that is in one piece.
    pub(super) one: Option<Segment>,
    /// Else its data; spent in any other case.
    pub(super) segments: Segments,
}

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Vacant,
    /// Plain transfers.
    Read,
    Write,
    DurableWrite,
    /// A request in flight, which is in its slot.
    InFlight,
}

impl State {
    /// That of a plain transfer that asks this, and where it is on the disk.
    #[inline]
    pub(super) fn of(op: Operation) -> Option<(Self, ByteOffset)> {
        match op {
            Operation::Read { at } => Some((Self::Read, at)),
            Operation::Write { at, durability: Durability::Volatile } => Some((Self::Write, at)),
            Operation::Write { at, .. } => Some((Self::DurableWrite, at)),
            Operation::CompareAndWrite { .. }
            | Operation::Flush
            | Operation::Discard { .. }
            | Operation::WriteZeroes { .. } => None,
        }
    }
}

impl Place {
    pub(super) const VACANT: Self = Self {
        state: State::Vacant,
        bytes: 0,
        at: ByteOffset(0),
        one: None,
        segments: Segments::new(),
    };

    /// What is asked with a plain transfer.
    pub(super) fn plain_op(&self) -> Option<Operation> {
        let write = |durability| Operation::Write { at: self.at, durability };
        match self.state {
            State::Read => Some(Operation::Read { at: self.at }),
            State::Write => Some(write(Durability::Volatile)),
            State::DurableWrite => Some(write(Durability::Durable)),
            State::Vacant | State::InFlight => None,
        }
    }

    /// Takes the segments of a plain transfer.
    pub(super) fn take_segments(&mut self) -> Segments {
        if let Some(one) = self.one.take() {
            self.segments.clear();
            self.segments.push(one);
        }
        std::mem::take(&mut self.segments)
    }

    /// The place is free for the next request.
    pub(super) fn vacate(&mut self, mut segments: Segments) {
        segments.clear();
        self.segments = segments;
        self.state = State::Vacant;
    }
}
