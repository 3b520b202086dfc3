//! The requests of one engine from push to completion: all of an engine except how the host is
//! asked.
//!
//! A request is ready (its next call can be submitted), submitted (the host works on it), or it
//! waits ([`waiting`]). Used from the worker's thread. Nothing here blocks, and the fast path
//! neither allocates nor locks.

mod admission;
mod cancel;
mod fast_push;
mod fast_slot;
mod result_copy;
#[cfg(test)]
pub(crate) mod tests;
mod waiting;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use self::admission::{Admission, admit, check_promise, detect_zeroes};
use self::fast_slot::{FastSlot, SlotState};
use self::result_copy::{copy_of, copy_of_error};
use self::waiting::{MAX_ZEROING, Machines, QueueContext, Stage, Waiting};
use crate::discard::TransferCount;
use crate::disk_state::OpenDisk;
use crate::host_file::MAX_ZEROED_AT_ONCE;
use crate::host_io::{
    Effect, FastFilter, HostCall, HostOp, Outcome, Progress, StateMachine, single_call,
};
use crate::{Completion, EngineSetup, Operation, Request, Segments, total_len};

/// Threads of the pool of one queue: enough to keep a disk busy, few enough for many queues.
pub(crate) const THREADS: usize = 4;
// A discard chunk, an `fdatasync` and zeroing together leave one.
const _: () = assert!(MAX_ZEROING + 2 < THREADS, "a read finds a free thread");

/// See the module's documentation.
pub(crate) struct Requests {
    disk: Arc<OpenDisk>,
    /// By tag.
    fast: Box<[FastSlot]>,
    /// Requests that are not fast-path transfers, or no longer.
    machines: Machines,
    /// Which transfers the fast path accepts now.
    filter: FastFilter,
    waiting: Waiting,
    ready: VecDeque<u16>,
    /// Calls that the host works on.
    submitted: usize,
    /// This engine's reads and writes in flight.
    transfers: Arc<TransferCount>,
    completed: Vec<Completion>,
    /// Requests that one `fdatasync` has completed.
    synced: Vec<u16>,
    is_draining: bool,
}

impl Requests {
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(crate) fn new(disk: Arc<OpenDisk>, setup: &EngineSetup<'_>) -> io::Result<Self> {
        let depth = usize::from(setup.depth);
        let waiting = Waiting::new(&disk, setup)?;
        let mut requests = Self {
            filter: FastFilter::CLOSED,
            transfers: disk.state.load.register(),
            disk,
            fast: std::iter::repeat_with(|| FastSlot::VACANT).take(depth).collect(),
            machines: Machines::new(depth),
            waiting,
            ready: VecDeque::with_capacity(depth),
            submitted: 0,
            completed: Vec::with_capacity(depth),
            synced: Vec::with_capacity(depth),
            is_draining: false,
        };
        requests.update_filter();
        Ok(requests)
    }

    /// Accepts any request. A call that is returned is to be submitted; others come with
    /// [`Requests::next_call`].
    #[cold]
    pub(crate) fn push(&mut self, request: Request<'_>) -> Option<HostCall> {
        let Request { tag, op, segments } = request;
        let bytes = total_len(segments) as u64;
        if let Admission::Complete(result) = admit(op, bytes, &self.disk) {
            self.report(tag, op, result);
            return None;
        }
        let slot = self.fast.get_mut(usize::from(tag));
        let Some(slot) = slot.filter(|slot| slot.state == SlotState::Vacant) else {
            self.report(tag, op, Err(io::Error::from_raw_os_error(libc::EINVAL)));
            return None;
        };
        let op = detect_zeroes(op, segments, &self.disk);
        std::mem::swap(&mut slot.segments, segments);
        if !self.waiting.claims.is_required()
            && let Ok(bytes) = u32::try_from(bytes)
            && let Some((state, at)) = SlotState::of(op)
            && let Some(call) = single_call(op, &slot.segments, &self.disk.file)
        {
            (slot.state, slot.bytes, slot.at, slot.contiguous) = (state, bytes, at, None);
            self.submitted += 1;
            self.transfers.submit();
            return Some(self.offload_if_blocking(call));
        }
        let segments = std::mem::take(&mut slot.segments);
        self.start(tag, op, segments);
        None
    }

    /// Starts a request that needs a state machine.
    fn start(&mut self, tag: u16, op: Operation, segments: Segments) {
        if matches!(op, Operation::CompareAndWrite { .. }) {
            self.disk.state.range_lock.require();
            self.enable_claims_if_required();
        }
        self.insert_machine(tag, op, segments);
        if op.is_transfer() {
            self.transfers.submit();
        }
        match op {
            Operation::Discard { range, .. }
            | Operation::WriteZeroes { range, unmap: true, .. } => {
                self.disk.state.discards.add_requested(range.len);
            }
            // No discard is delayed past a flush.
            Operation::Flush => {
                self.waiting.merge.expedite();
                self.release();
            }
            _ => {}
        }
        self.pass(tag, Stage::New);
    }

    fn insert_machine(&mut self, tag: u16, op: Operation, segments: Segments) {
        if let Some(slot) = self.fast.get_mut(usize::from(tag)) {
            slot.state = SlotState::Machine;
            self.machines.insert(tag, StateMachine::new(op, segments, &self.disk.file));
        }
    }

    /// Passes a request through the queues; it is ready once it has passed all of them.
    fn pass(&mut self, tag: u16, stage: Stage) {
        let Self { waiting, machines, disk, is_draining: false, .. } = self else { return };
        if waiting.pass(tag, stage, &mut QueueContext { disk, machines }) {
            self.make_ready(tag);
        }
    }

    /// Readies the requests that need not wait any longer.
    fn release(&mut self) {
        while let Self { waiting, machines, disk, is_draining: false, .. } = self
            && let Some(tag) = waiting.release(&mut QueueContext { disk, machines })
        {
            self.make_ready(tag);
        }
    }

    fn make_ready(&mut self, tag: u16) {
        match self.machines.get(tag) {
            // A discard of partial granules only.
            Some(machine) if machine.is_empty() => self.complete(tag, Ok(())),
            Some(_) => self.ready.push_back(tag),
            None => {}
        }
    }

    /// The next call to submit. [`Requests::handle_result`] takes its result.
    pub(crate) fn next_call(&mut self) -> Option<(u16, HostCall)> {
        let tag = self.ready.pop_front()?;
        let machine = self.machines.get_mut(tag)?;
        self.submitted += 1;
        let limit = if machine.is_paced_discard() {
            self.waiting.discards.0.chunk_of(machine.range_left())
        } else {
            MAX_ZEROED_AT_ONCE
        };
        let locks_page_cache = machine.locks_page_cache();
        let call = machine.next_call(limit, &self.disk.file, self.disk.state.memory.buffers());
        let call = self.offload_if_blocking(call);
        if locks_page_cache {
            self.disk.state.begin_zeroing();
            self.update_filter();
        }
        Some((tag, call))
    }

    /// The call, to be made by a thread that may block if submitting it would block now.
    fn offload_if_blocking(&self, call: HostCall) -> HostCall {
        let is_transfer = matches!(call.op, HostOp::Read { .. } | HostOp::Write { .. });
        let blocks = is_transfer && self.disk.submission_blocks_now();
        HostCall { may_block: call.may_block || blocks, ..call }
    }

    fn update_filter(&mut self) {
        let is_closed = self.waiting.claims.is_required() || self.disk.submission_blocks_now();
        self.filter = if is_closed { FastFilter::CLOSED } else { FastFilter::of(&self.disk.file) };
    }

    /// Handles the result of a submitted call: a count of bytes or a negated errno. Returns whether
    /// [`Requests::next_call`] may have another call.
    #[inline]
    pub(crate) fn handle_result(&mut self, tag: u16, result: i32) -> bool {
        if let Some(slot) = self.fast.get_mut(usize::from(tag))
            && matches!(slot.state, SlotState::Read | SlotState::Write)
            && i64::from(result) == i64::from(slot.bytes)
        {
            slot.state = SlotState::Vacant;
            self.submitted -= 1;
            self.transfers.complete();
            self.completed.push(Completion { tag, result: Ok(()) });
            return false;
        }
        self.handle_other_result(tag, result);
        true
    }

    /// As [`Requests::handle_result`], for all results but that of a completed fast-path transfer.
    #[cold]
    fn handle_other_result(&mut self, tag: u16, result: i32) {
        let Some(slot) = self.fast.get_mut(usize::from(tag)) else { return };
        if let Some(op) = slot.transfer() {
            if i64::from(result) == i64::from(slot.bytes) {
                slot.state = SlotState::Vacant;
                self.submitted -= 1;
                self.transfers.complete();
                return self.report(tag, op, check_promise(op, &self.disk));
            }
            self.demote(tag, op);
        }
        self.handle_machine_result(tag, result);
        self.release();
    }

    /// Handles the result of a state machine's call.
    fn handle_machine_result(&mut self, tag: u16, result: i32) {
        let Some(machine) = self.machines.get_mut(tag) else { return };
        self.submitted = self.submitted.saturating_sub(1);
        if machine.locks_page_cache() {
            self.disk.state.end_zeroing();
        }
        let (was_sync, was_zeroing) = (machine.is_sync(), machine.is_zeroing_call());
        let was_chunk = machine.is_paced_discard();
        let more_follows = matches!(machine.op(), Operation::Discard { more_follows: true, .. });
        let Outcome { progress, effect } = machine.handle_result(result, &self.disk.file);
        if was_chunk {
            let bytes = if let Effect::Deallocated(bytes) = effect { bytes } else { 0 };
            let state = &self.disk.state;
            let discards = &mut self.waiting.discards.0;
            discards.complete_chunk(state.clock.now(), bytes, more_follows, &state.load);
        }
        self.apply(effect, &progress);
        match progress {
            Progress::Again if self.is_draining => {
                self.complete(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            }
            Progress::Again => self.pass(tag, Stage::Answered),
            Progress::NoSpace(error) if was_sync => self.hold_synced(&error),
            Progress::NoSpace(error) => self.hold(tag, error),
            Progress::Done(result) if was_sync => self.complete_synced(&result),
            Progress::Done(result) => self.complete(tag, result),
        }
        if was_zeroing {
            self.waiting.zeroing.complete_call();
        }
        if was_chunk {
            self.waiting.discards.0.end_busy_period_if_idle();
        }
    }

    /// Applies what a result means for the disk.
    fn apply(&self, effect: Effect, progress: &Progress) {
        match (effect, progress) {
            (Effect::None, _) => {}
            (Effect::Deallocated(bytes), _) => self.disk.state.discards.add_freed(bytes),
            (Effect::DiscardUnsupported, _) => self.disk.log_discard_refusal(),
            (Effect::WritesLost, Progress::Done(Err(error)) | Progress::NoSpace(error)) => {
                self.disk.lose_writes(error);
            }
            (Effect::WritesLost, _) => debug_assert!(false, "an error is the reason"),
        }
    }

    /// Holds a request for which there is no space, or fails it.
    #[cold]
    fn hold(&mut self, tag: u16, error: io::Error) {
        let may_hold = self.machines.get(tag).is_some_and(StateMachine::may_hold);
        if self.is_draining || !may_hold || !self.waiting.hold(tag, &error, &self.disk) {
            return self.complete(tag, Err(error));
        }
        if let Some(machine) = self.machines.get_mut(tag) {
            machine.free_memory();
        }
        self.waiting.memory.complete(tag, &self.disk.state.memory);
        self.waiting.claims.complete(tag, &self.disk.state.range_lock);
    }

    /// Holds the requests that waited for an `fdatasync`, or fails them.
    #[cold]
    fn hold_synced(&mut self, error: &io::Error) {
        let mut synced = std::mem::take(&mut self.synced);
        self.waiting.syncs.complete_call(&mut synced);
        for tag in synced.drain(..) {
            self.hold(tag, copy_of_error(error));
        }
        self.synced = synced;
    }

    /// An `fdatasync` has completed, for all requests that waited for it.
    fn complete_synced(&mut self, result: &io::Result<()>) {
        let mut synced = std::mem::take(&mut self.synced);
        self.waiting.syncs.complete_call(&mut synced);
        for tag in synced.drain(..) {
            self.complete(tag, copy_of(result));
        }
        self.synced = synced;
    }

    /// Completes a request, and those that were merged into it.
    fn complete(&mut self, tag: u16, result: io::Result<()>) {
        self.waiting.claims.complete(tag, &self.disk.state.range_lock);
        let Some(machine) = self.machines.remove(tag) else { return };
        self.waiting.enospc.complete(tag, result.is_ok(), &self.disk);
        let op = machine.op();
        if op.is_transfer() {
            self.transfers.complete();
        }
        // The kernel may have reported to another request what this one has lost.
        let result = result.and_then(|()| check_promise(op, &self.disk));
        if let Some(slot) = self.fast.get_mut(usize::from(tag)) {
            slot.vacate(machine.into_segments());
        }
        self.waiting.memory.complete(tag, &self.disk.state.memory);
        while let Some(rider) = self.waiting.merge.pop_rider(tag) {
            self.complete(rider, copy_of(&result));
        }
        self.report(tag, op, result);
    }

    #[cold]
    fn report(&mut self, tag: u16, op: Operation, result: io::Result<()>) {
        if let (Err(error), false) = (&result, self.is_draining) {
            self.disk.state.failures.log(op, error);
        }
        self.completed.push(Completion { tag, result });
    }

    /// Claims every change from now on if that has become required. To be called after each kick.
    #[cold]
    pub(crate) fn enable_claims_if_required(&mut self) {
        if self.waiting.claims.is_required() || !self.disk.state.range_lock.is_required() {
            return;
        }
        // The range lock must not miss the completion of a write.
        for tag in self.machines.tags() {
            let op = self.fast.get(usize::from(tag)).and_then(FastSlot::transfer);
            if let Some(op) = op.filter(|op| !matches!(op, Operation::Read { .. })) {
                self.demote(tag, op);
            }
        }
        self.waiting.claims.require(&self.disk.state.range_lock);
        self.update_filter();
        self.release();
    }

    /// Gives a fast-path transfer a state machine. It has no claim: with claims required, the fast
    /// path takes no writes.
    fn demote(&mut self, tag: u16, op: Operation) {
        let Some(slot) = self.fast.get_mut(usize::from(tag)) else { return };
        let segments = slot.take_segments();
        self.insert_machine(tag, op, segments);
        if !matches!(op, Operation::Read { .. }) {
            self.waiting.claims.mark_unclaimed(tag);
        }
    }

    /// Calls that the host works on.
    pub(crate) fn submitted(&self) -> usize {
        self.submitted
    }

    /// Moves the completions to the end of `completed`.
    #[inline]
    pub(crate) fn take_completed(&mut self, completed: &mut Vec<Completion>) {
        completed.append(&mut self.completed);
        // Another engine may have started to zero.
        if self.disk.file.submission_may_block() {
            self.update_filter();
        }
    }

    pub(crate) fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    /// See [`crate::IoEngine::parked`].
    pub(crate) fn parked(&self) -> usize {
        self.waiting.parked()
    }

    /// Time left until [`Requests::revive`] may find a request ready; `None` if only a result or a
    /// kick can change that.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.due()
    }

    /// The time on the clock of [`Requests::due`].
    pub(crate) fn now(&self) -> Instant {
        self.disk.state.clock.now()
    }

    /// Whether requests wait that [`Requests::revive`] may find ready.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.is_active()
    }

    /// Readies the requests that need not wait any longer.
    #[cold]
    pub(crate) fn revive(&mut self) {
        self.release();
    }

    /// Completes requests with the next result of the host from now on; those that wait stay where
    /// they are.
    pub(crate) fn drain(&mut self) {
        self.is_draining = true;
    }
}

impl Drop for Requests {
    /// Requests that wait are completed without the host: their accounts and claims are the disk's.
    fn drop(&mut self) {
        debug_assert!(self.submitted == 0);
        self.is_draining = true;
        for tag in self.machines.tags() {
            self.complete(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        self.waiting.claims.unregister(&self.disk.state.range_lock);
        debug_assert!(self.transfers.in_flight() == 0);
    }
}
