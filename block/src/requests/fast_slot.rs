//! The state of a request by its tag: of a fast-path transfer, all of it.

use crate::{ByteOffset, Durability, Operation, Segment, Segments};

/// A fast-path transfer, or nothing while the request has a state machine. A fast-path transfer is
/// one call that most likely transfers everything.
#[derive(Debug)]
pub(super) struct FastSlot {
    pub(super) state: SlotState,
    /// Length of the transfer: the result that completes it.
    pub(super) bytes: u32,
    /// Disk offset.
    pub(super) at: ByteOffset,
    /// The data of a contiguous transfer.
    pub(super) contiguous: Option<Segment>,
    /// The data of any other transfer; undefined in all other states.
    pub(super) segments: Segments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Vacant,
    /// Fast-path transfers.
    Read,
    Write,
    DurableWrite,
    /// The request has a state machine.
    Machine,
}

impl SlotState {
    /// The state of a fast-path transfer for `op`, and its disk offset; `None` for other
    /// operations.
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

impl FastSlot {
    pub(super) const VACANT: Self = Self {
        state: SlotState::Vacant,
        bytes: 0,
        at: ByteOffset(0),
        contiguous: None,
        segments: Segments::new(),
    };

    /// The operation of a fast-path transfer; `None` in other states.
    pub(super) fn transfer(&self) -> Option<Operation> {
        let write = |durability| Operation::Write { at: self.at, durability };
        match self.state {
            SlotState::Read => Some(Operation::Read { at: self.at }),
            SlotState::Write => Some(write(Durability::Volatile)),
            SlotState::DurableWrite => Some(write(Durability::Durable)),
            SlotState::Vacant | SlotState::Machine => None,
        }
    }

    /// Takes the segments of a fast-path transfer.
    pub(super) fn take_segments(&mut self) -> Segments {
        if let Some(segment) = self.contiguous.take() {
            self.segments.clear();
            self.segments.push(segment);
        }
        std::mem::take(&mut self.segments)
    }

    /// Frees the slot; `segments` is a list to reuse.
    pub(super) fn vacate(&mut self, mut segments: Segments) {
        segments.clear();
        self.segments = segments;
        self.state = SlotState::Vacant;
    }
}
