//! A read or write that the host most likely carries out whole at the first asking.
//!
//! That is all but very few of them, and it takes a fraction of the state: only when the host answers anything
//! else does a transfer become a request in flight, which then takes that answer.

use super::bounce::fits;
use super::cursor::{MAX_SEGMENTS, total_len, whole};
use super::{Ask, Call, InFlight};
use crate::host_file::HostFile;
use crate::{ByteOffset, Durability, Operation, Segments};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Plain {
    way: Way,
    at: ByteOffset,
    segments: Segments,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Read,
    Write(Durability),
}

impl Plain {
    /// The transfer; the segments again if it is none, or if the host does not take them as they are.
    pub(crate) fn new(
        op: Operation,
        segments: Segments,
        host: &HostFile,
    ) -> Result<Self, Segments> {
        let (way, at) = match op {
            Operation::Read { at } => (Way::Read, at),
            Operation::Write { at, durability } => (Way::Write(durability), at),
            _ => return Err(segments),
        };
        let misfits = |direct| !fits(&segments, at.0, direct);
        if segments.len() > MAX_SEGMENTS || host.direct.is_some_and(misfits) {
            return Err(segments);
        }
        let bytes = total_len(&segments);
        Ok(Self { way, at, segments, bytes })
    }

    pub(crate) fn op(&self) -> Operation {
        match self.way {
            Way::Read => Operation::Read { at: self.at },
            Way::Write(durability) => Operation::Write { at: self.at, durability },
        }
    }

    pub(crate) fn into_segments(self) -> Segments {
        self.segments
    }

    /// What to ask the host. The memory it names stays valid as long as this.
    pub(crate) fn call(&self) -> Call {
        let (memory, at) = (whole(&self.segments), self.at.0);
        let ask = match self.way {
            Way::Read => Ask::Read { memory, at },
            Way::Write(durability) => {
                Ask::Write { memory, at, durable: durability == Durability::Durable }
            }
        };
        Call { ask, may_block: false }
    }

    /// Whether an answer of the host says that every byte has moved.
    pub(crate) fn is_done_by(&self, answer: i32) -> bool {
        usize::try_from(answer).is_ok_and(|count| count == self.bytes)
    }

    /// The same as a request in flight, whose first call has been asked.
    #[cold]
    pub(crate) fn into_in_flight(self, host: &HostFile) -> InFlight {
        InFlight::new(self.op(), self.segments, host)
    }
}
