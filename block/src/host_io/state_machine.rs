//! One request in flight: its next call to the host, and what the results of its calls mean.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::host_call::{HostCall, HostOp};
use super::range_work::{Fallback, RangeWork};
use super::transfer::Transfer;
use crate::buffer_pool::BufferPool;
use crate::host_file::{HostFile, is_enospc};
use crate::{ByteRange, Durability, Operation, Segments};

/// The state of a request after the result of a call.
#[derive(Debug)]
pub(crate) enum Progress {
    /// [`StateMachine::next_call`] has another call.
    Again,
    /// The host has no space. Nothing else is wrong: the call can be retried later.
    NoSpace(io::Error),
    /// The request is complete.
    Done(io::Result<()>),
}

/// The effect of a result on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The host has deallocated this many bytes.
    Deallocated(u64),
    /// The host cannot discard here.
    DiscardUnsupported,
    /// Data that was acknowledged before may be lost; the request's error is the reason.
    WritesLost,
}

/// Progress of the request, and the effect on the disk.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) progress: Progress,
    pub(crate) effect: Effect,
}

impl From<Progress> for Outcome {
    fn from(progress: Progress) -> Self {
        Self { progress, effect: Effect::None }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct StateMachine {
    op: Operation,
    work: Work,
    /// List of a request without a transfer, to be given back.
    spare: Segments,
    /// The next call may block: the host refuses it otherwise.
    may_block: bool,
    /// Another request discards the range of this one together with its own.
    is_merged: bool,
    /// It fails if there is no space for it, also if others are held.
    fails_without_space: bool,
}

#[derive(Debug)]
enum Work {
    Transfer(Transfer),
    Range(RangeWork),
    Sync,
}

impl StateMachine {
    /// Takes a request that was admitted.
    pub(crate) fn new(op: Operation, segments: Segments, file: &HostFile) -> Self {
        let (work, spare) = match Transfer::new(op, segments) {
            Ok(transfer) => (Work::Transfer(transfer), Segments::new()),
            Err(spare) => (RangeWork::new(op, file).map_or(Work::Sync, Work::Range), spare),
        };
        Self { op, work, spare, may_block: false, is_merged: false, fails_without_space: false }
    }

    pub(crate) fn op(&self) -> Operation {
        self.op
    }

    pub(crate) fn into_segments(self) -> Segments {
        match self.work {
            Work::Transfer(transfer) => transfer.into_segments(),
            Work::Range(_) | Work::Sync => self.spare,
        }
    }

    /// The bytes of the disk that it still has to change; `None` if it changes none.
    pub(crate) fn changes(&self) -> Option<Range<u64>> {
        let from = |(at, len): (u64, u64)| Some(at..at.saturating_add(len));
        match (self.op, &self.work) {
            (Operation::Read { .. } | Operation::Flush, _) => None,
            (Operation::Discard { .. }, _) if self.is_merged => None,
            (Operation::WriteZeroes { range: ByteRange { start, len }, .. }, _) => {
                from((start.0, len))
            }
            // A compare-and-write is claimed before the comparison, when its read is the rest.
            (_, Work::Transfer(transfer)) => from(transfer.rest()),
            (_, Work::Range(work)) => from(work.rest()),
            (_, Work::Sync) => from((0, 0)),
        }
    }

    /// Whether there is no call to make.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.work, Work::Range(work) if work.is_empty())
    }

    /// Whether the next call discards a chunk and can be deferred.
    pub(crate) fn is_paced_discard(&self) -> bool {
        matches!(&self.work, Work::Range(work) if work.is_paced())
    }

    /// Bytes left of the current piece of the range.
    pub(crate) fn range_left(&self) -> u64 {
        match &self.work {
            Work::Range(work) => work.rest().1,
            Work::Transfer(_) | Work::Sync => 0,
        }
    }

    /// Whether the next call is an `fdatasync`.
    pub(crate) fn is_sync(&self) -> bool {
        matches!(self.work, Work::Sync)
    }

    /// Whether the next call makes the host zero a range, which may take it long.
    pub(crate) fn is_zeroing_call(&self) -> bool {
        matches!(&self.work, Work::Range(work) if work.is_zeroing_call())
    }

    /// Whether the next call locks the page cache of a block device.
    pub(crate) fn locks_page_cache(&self) -> bool {
        matches!(&self.work, Work::Range(work) if work.locks_page_cache())
    }

    /// It is not held for space any more.
    pub(crate) fn forbid_hold(&mut self) {
        self.fails_without_space = true;
    }

    pub(crate) fn may_hold(&self) -> bool {
        !self.fails_without_space
    }

    /// Marks whether another request discards the range of this one.
    pub(crate) fn set_merged(&mut self, is_merged: bool) {
        self.is_merged = is_merged;
    }

    /// Discards `range` in place of the request's own: it covers the whole granules of several
    /// requests, with the durability that any of them needs.
    pub(crate) fn replace_discard(
        &mut self,
        range: ByteRange,
        durability: Durability,
        file: &HostFile,
    ) {
        self.op = Operation::Discard { range, durability, more_follows: false };
        if let Some(work) = RangeWork::new(self.op, file) {
            self.work = Work::Range(work);
        }
    }

    /// Bytes of memory that the next call needs and that are not allocated yet.
    pub(crate) fn memory_needed(&self, file: &HostFile) -> u64 {
        match &self.work {
            Work::Transfer(transfer) => transfer.memory_needed(file.limits.direct),
            Work::Range(work) => work.memory_needed(file.limits.direct),
            Work::Sync => 0,
        }
    }

    /// Frees the request's memory, and with it what was read of the disk, which others may change.
    pub(crate) fn free_memory(&mut self) {
        match &mut self.work {
            Work::Transfer(transfer) => transfer.free_memory(),
            Work::Range(work) => work.free_memory(),
            Work::Sync => {}
        }
    }

    /// The next call, for at most `limit` bytes if it discards or zeroes a range.
    pub(crate) fn next_call(
        &mut self,
        limit: u64,
        file: &HostFile,
        buffers: &Arc<BufferPool>,
    ) -> HostCall {
        let direct = file.limits.direct;
        let op = match &mut self.work {
            Work::Transfer(transfer) => transfer.next_op(direct, buffers),
            Work::Range(work) => work.next_op(limit, direct, buffers),
            Work::Sync => HostOp::Sync,
        };
        HostCall { op, may_block: self.may_block }
    }

    /// Handles the result of the outstanding call: a count of bytes or a negated errno.
    pub(crate) fn handle_result(&mut self, result: i32, file: &HostFile) -> Outcome {
        let Ok(count) = usize::try_from(result) else {
            return self.handle_error(io::Error::from_raw_os_error(result.wrapping_neg()), file);
        };
        self.may_block = false;
        let direct = file.limits.direct;
        match &mut self.work {
            Work::Transfer(transfer) => match transfer.complete_call(count, direct) {
                Ok(false) => Progress::Again.into(),
                Ok(true) => Progress::Done(Ok(())).into(),
                Err(error) => Progress::Done(Err(error)).into(),
            },
            Work::Range(work) => match work.complete_call(count, direct) {
                Ok((is_complete, bytes)) => {
                    let effect = if bytes > 0 { Effect::Deallocated(bytes) } else { Effect::None };
                    let progress = if is_complete { self.finish_range() } else { Progress::Again };
                    Outcome { progress, effect }
                }
                Err(error) => Progress::Done(Err(error)).into(),
            },
            Work::Sync => Progress::Done(Ok(())).into(),
        }
    }

    /// The range is complete; if it has to be durable, a sync follows.
    fn finish_range(&mut self) -> Progress {
        match self.op {
            Operation::Discard { durability: Durability::Durable, .. }
            | Operation::WriteZeroes { durability: Durability::Durable, .. } => {
                self.work = Work::Sync;
                Progress::Again
            }
            _ => Progress::Done(Ok(())),
        }
    }

    fn handle_error(&mut self, error: io::Error, file: &HostFile) -> Outcome {
        match error.raw_os_error() {
            Some(libc::EINTR) => return Progress::Again.into(),
            Some(errno) if self.is_refused_without_blocking(errno) => {
                self.may_block = true;
                return Progress::Again.into();
            }
            Some(errno) if self.is_unsupported(errno) => match self.fall_back() {
                Fallback::Next => return Progress::Again.into(),
                Fallback::Ignore => {
                    let progress = Progress::Done(Ok(()));
                    return Outcome { progress, effect: Effect::DiscardUnsupported };
                }
                Fallback::Fail => {}
            },
            _ => {}
        }
        self.fail(error, file)
    }

    /// Whether the host refused the call because it would block. A ZFS volume cannot tell and
    /// refuses with `EOPNOTSUPP` every discard that must not block.
    fn is_refused_without_blocking(&self, errno: i32) -> bool {
        let is_discard = matches!(&self.work, Work::Range(work) if work.is_block_discard());
        errno == libc::EAGAIN || (errno == libc::EOPNOTSUPP && is_discard && !self.may_block)
    }

    /// Whether the host cannot make the call at all. `EBUSY` is returned for a discard that has to
    /// zero while another process writes to the device through the page cache.
    fn is_unsupported(&self, errno: i32) -> bool {
        let zeroes = matches!(&self.work, Work::Range(work) if work.is_zeroing_discard());
        errno == libc::EOPNOTSUPP || (errno == libc::EBUSY && zeroes)
    }

    fn fall_back(&mut self) -> Fallback {
        match &mut self.work {
            Work::Range(work) => work.fall_back(),
            Work::Transfer(_) | Work::Sync => Fallback::Fail,
        }
    }

    /// The outstanding call has failed for good, or for lack of space.
    fn fail(&self, error: io::Error, file: &HostFile) -> Outcome {
        let is_durable_write =
            matches!(&self.work, Work::Transfer(transfer) if transfer.is_durable_write());
        let is_lossy = match self.is_sync() {
            true => file.is_loss_by_flush(&error),
            false => is_durable_write && file.is_loss_of_earlier_writes(&error),
        };
        let is_no_space = match self.op {
            // The compared data could have changed by the time of a retry.
            Operation::CompareAndWrite { .. } | Operation::Read { .. } => false,
            _ if is_durable_write => file.is_own_enospc(&error),
            _ => is_enospc(&error) && !is_lossy,
        };
        let effect = if is_lossy { Effect::WritesLost } else { Effect::None };
        let progress =
            if is_no_space { Progress::NoSpace(error) } else { Progress::Done(Err(error)) };
        Outcome { progress, effect }
    }
}
