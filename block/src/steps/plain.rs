//! A read or write that the host most likely carries out whole at the first asking.
//!
//! That is all but very few of them, and it takes a fraction of the state: only when the host answers anything
//! else does a transfer become a request in flight, which then takes that answer.

use super::bounce::fits;
use super::cursor::{MAX_SEGMENTS, Memory, whole};
use super::{Ask, Call};
use crate::host_file::HostFile;
use crate::{DetectZeroes, Durability, Operation, Segment};

/// The call of a request if it is such a transfer: not if the host does not take the segments
/// as they are. The memory that the call names is that of `segments` and, where it is more than one, their list.
pub(crate) fn plain_call(op: Operation, segments: &[Segment], host: &HostFile) -> Option<Call> {
    let (Operation::Read { at } | Operation::Write { at, .. }) = op else { return None };
    let misfits = |direct| !fits(segments, at.0, direct);
    if segments.len() > MAX_SEGMENTS || host.direct.is_some_and(misfits) {
        return None;
    }
    let (memory, at) = (whole(segments), at.0);
    let ask = match op {
        Operation::Write { durability, .. } => {
            Ask::Write { memory, at, durable: durability == Durability::Durable }
        }
        _ => Ask::Read { memory, at },
    };
    Some(Call { ask, may_block: false })
}

/// A transfer in one piece that promises no durability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SimpleTransfer {
    /// Where on the disk, in bytes.
    pub(crate) at: u64,
    pub(crate) base: *mut u8,
    pub(crate) bytes: u32,
    pub(crate) writes: bool,
}

impl SimpleTransfer {
    /// What to ask the host.
    pub(crate) fn call(self) -> Call {
        let Self { at, base, bytes, writes } = self;
        let memory = Memory::Buffer(base, bytes);
        let ask = if writes {
            Ask::Write { memory, at, durable: false }
        } else {
            Ask::Read { memory, at }
        };
        Call { ask, may_block: false }
    }
}

/// What a disk takes in one piece as it is: [`fits`] as masks of what must be zero, which let all pass where nothing is
/// asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    memory: usize,
    offset: u64,
    /// Nothing is taken: blocks have to be claimed.
    nothing: bool,
    /// Writes have to be looked at.
    detects_zeroes: bool,
}

impl Fit {
    /// Where blocks have to be claimed first.
    pub(crate) const NOTHING: Self =
        Self { memory: 0, offset: 0, nothing: true, detects_zeroes: false };

    /// What the disk takes where they have not.
    pub(crate) fn of(host: &HostFile) -> Self {
        let direct = host
            .direct
            .map_or((0, 0), |direct| (direct.memory as usize - 1, u64::from(direct.offset) - 1));
        Self {
            memory: direct.0,
            offset: direct.1,
            nothing: false,
            detects_zeroes: host.detect_zeroes != DetectZeroes::Off,
        }
    }

    /// Whether the disk takes this piece at this offset as it is.
    #[inline]
    pub(crate) fn takes(self, segment: &Segment, at: u64, writes: bool) -> bool {
        let odd = (segment.base().addr() & self.memory) as u64
            | ((segment.len() as u64 | at) & self.offset);
        odd == 0 && !self.nothing && !(writes && self.detects_zeroes)
    }
}
