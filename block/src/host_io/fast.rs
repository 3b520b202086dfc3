//! Transfers that one call most likely completes.
//!
//! That is nearly all of them. A fast-path slot keeps a fraction of a state machine's state; a
//! transfer becomes a [`StateMachine`](super::StateMachine) only when the host returns anything
//! other than its full length.

use super::host_call::{HostCall, HostOp, IoBuffer, MAX_SEGMENTS};
use crate::host_file::{DirectIo, HostFile};
use crate::{DetectZeroes, Durability, Operation, Segment};

/// The call of a read or write that direct I/O accepts as it is and that fits one call; `None` for
/// any other request. The call names the memory of `segments` and, if there are several, the list
/// itself.
pub(crate) fn single_call(
    op: Operation,
    segments: &[Segment],
    file: &HostFile,
) -> Option<HostCall> {
    let (Operation::Read { at } | Operation::Write { at, .. }) = op else { return None };
    let is_write = matches!(op, Operation::Write { .. });
    let accepts = |direct: DirectIo| direct.accepts(segments, at.0, is_write);
    if segments.len() > MAX_SEGMENTS || !file.limits.direct.is_none_or(accepts) {
        return None;
    }
    let (buffer, at) = (IoBuffer::of_segments(segments), at.0);
    let op = match op {
        Operation::Write { durability, .. } => {
            HostOp::Write { buffer, at, durable: durability == Durability::Durable }
        }
        _ => HostOp::Read { buffer, at },
    };
    Some(HostCall { op, may_block: false })
}

/// A contiguous transfer that promises no durability: what most calls are. The invariant of
/// [`HostCall`] holds for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FastTransfer {
    pub(crate) base: *mut u8,
    pub(crate) bytes: u32,
    /// Disk offset in bytes.
    pub(crate) at: u64,
    pub(crate) is_write: bool,
}

impl From<FastTransfer> for HostCall {
    fn from(FastTransfer { base, bytes, at, is_write }: FastTransfer) -> Self {
        let buffer = IoBuffer::Contiguous(base, bytes);
        let op = if is_write {
            HostOp::Write { buffer, at, durable: false }
        } else {
            HostOp::Read { buffer, at }
        };
        Self { op, may_block: false }
    }
}

/// Which contiguous transfers the fast path accepts: [`DirectIo::accepts`] with masks of the bits
/// that must be zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FastFilter {
    memory: usize,
    offset: u64,
    /// No transfer is accepted.
    closed: bool,
    /// No write is accepted: it has to be copied, or zeroes to be detected.
    closed_to_writes: bool,
}

impl FastFilter {
    /// Accepts nothing.
    pub(crate) const CLOSED: Self =
        Self { memory: 0, offset: 0, closed: true, closed_to_writes: false };

    /// Accepts what the file takes as it is.
    pub(crate) fn of(file: &HostFile) -> Self {
        let detects_zeroes = file.options.detect_zeroes != DetectZeroes::Off;
        Self::new(file.limits.direct, detects_zeroes)
    }

    fn new(direct: Option<DirectIo>, detects_zeroes: bool) -> Self {
        let Some(DirectIo { memory, offset, copies_reads, copies_writes }) = direct else {
            let closed_to_writes = detects_zeroes;
            return Self { memory: 0, offset: 0, closed: false, closed_to_writes };
        };
        Self {
            memory: memory as usize - 1,
            offset: u64::from(offset) - 1,
            closed: copies_reads,
            closed_to_writes: copies_writes || detects_zeroes,
        }
    }

    /// Whether the fast path accepts a transfer of `segment` at this offset.
    #[inline]
    pub(crate) fn accepts(self, segment: &Segment, at: u64, is_write: bool) -> bool {
        let odd = (segment.base().addr() & self.memory) as u64
            | ((segment.len() as u64 | at) & self.offset);
        odd == 0 && !self.closed && !(is_write && self.closed_to_writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each combination of flags, and of a transfer.
    #[test]
    fn the_filter_agrees_with_the_requirements_of_direct_io() {
        let flag = [false, true];
        for (copies_reads, copies_writes) in flag.iter().flat_map(|a| flag.map(|b| (*a, b))) {
            let direct = DirectIo { memory: 4, offset: 512, copies_reads, copies_writes };
            let filter = FastFilter::new(Some(direct), false);
            for (base, at, is_write) in
                [(8, 512), (6, 512), (8, 8)].iter().flat_map(|(a, b)| flag.map(|c| (*a, *b, c)))
            {
                let base = std::ptr::without_provenance_mut(base);
                // SAFETY: the memory is never accessed.
                let segment = unsafe { Segment::new(base, 512) };
                let accepted = filter.accepts(&segment, at, is_write);
                let needs_no_copy = direct.accepts(&[segment], at, is_write);
                // Copied reads close the fast path to writes as well.
                let expected = needs_no_copy && !copies_reads;
                assert_eq!(accepted, expected, "{direct:?} {base:?} {at} {is_write}");
            }
        }
    }
}
