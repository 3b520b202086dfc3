//! The engine of a queue of a recorded disk: forwards all to the disk's engine, and has it
//! recorded.
//!
//! While there is no memory for the data of a write, requests that change the disk are held. If the
//! log thread keeps that memory for [`GUEST_PATIENCE`], the recording ends. So a slow log slows the
//! guest down, and never stops it. Memory that requests in the disk have comes back with them, or
//! never, as without a recording.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::queue::{Begun, QueueRecorder};
use super::recorder::GUEST_PATIENCE;
use super::recording::Recording;
use crate::{ByteOffset, Completion, IoEngine, Operation, Request, Segment, Segments, Wake};

/// A request that the disk's engine has not got yet.
struct Held {
    tag: u16,
    op: Operation,
    segments: Segments,
    until: Instant,
}

/// See the module's documentation.
pub(super) struct RecordedEngine {
    // Dropped first: it drains, and what was in flight is recorded as such.
    inner: Box<dyn IoEngine>,
    recorder: QueueRecorder,
    /// Oldest first.
    held: VecDeque<Held>,
    /// When requests in the disk were last known to have all of the memory that is in use.
    log_even: Instant,
    /// Completions of requests that were held.
    cancelled: Vec<Completion>,
    /// Dropped last: the log is closed after all queues.
    _recording: Arc<Recording>,
}

impl RecordedEngine {
    pub(super) fn new(
        inner: Box<dyn IoEngine>,
        recorder: QueueRecorder,
        recording: Arc<Recording>,
    ) -> Self {
        let (held, cancelled, log_even) = (VecDeque::new(), Vec::new(), Instant::now());
        Self { inner, recorder, held, log_even, cancelled, _recording: recording }
    }

    /// Whether the request has to be held. One that is held is not overtaken by a change.
    #[inline]
    fn has_to_wait(&mut self, tag: u16, op: Operation, segments: &[Segment]) -> bool {
        let is_change = !matches!(op, Operation::Read { .. });
        (is_change && !self.held.is_empty())
            || self.recorder.begin(tag, op, segments) == Begun::Full
    }

    #[cold]
    fn hold(&mut self, tag: u16, op: Operation, segments: Segments) {
        self.held.push_back(Held { tag, op, segments, until: Instant::now() + GUEST_PATIENCE });
        self.push_held();
    }

    /// Pushes the held requests for which there is memory, or all if the recording has ended.
    #[cold]
    fn push_held(&mut self) {
        self.see_log();
        while let Some(Held { tag, op, segments, .. }) = self.held.front() {
            if self.recorder.begin(*tag, *op, segments) == Begun::Full {
                // Memory that is freed from now on is followed by a kick.
                self.recorder.starve();
                if self.recorder.begin(*tag, *op, segments) == Begun::Full {
                    if self.held_until().is_some_and(|until| until > Instant::now()) {
                        return;
                    }
                    self.recorder.give_up();
                }
            }
            if let Some(Held { tag, op, mut segments, .. }) = self.held.pop_front() {
                self.inner.push(Request { tag, op, segments: &mut segments });
            }
        }
    }

    /// Until when the oldest held request waits.
    fn held_until(&self) -> Option<Instant> {
        self.held.front().map(|held| held.until.max(self.log_even + GUEST_PATIENCE))
    }

    /// A held request does not wait for the log now, if the log thread has nothing. Parked requests
    /// may have the memory for ever, and a drain does not wait for them.
    #[cold]
    fn see_log(&mut self) {
        if !self.recorder.is_owed() && self.inner.parked() == 0 {
            self.log_even = Instant::now();
        }
    }

    /// Sleeps until a completion, a kick, or the time at which a held request has to go.
    #[cold]
    fn wait_held(&mut self) -> io::Result<Wake> {
        self.push_held();
        self.inner.submit()?;
        if self.held.is_empty() || self.is_ready() {
            return Ok(Wake { kicked: false });
        }
        let due = self.due();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        self.inner.poll_fd()?;
        // The descriptor may not tell of completions from before it was asked for.
        if self.is_ready() {
            return Ok(Wake { kicked: false });
        }
        let events = self.inner.poll_fd()?;
        match poll(&mut [PollFd::new(&events, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.inner.clear_poll_fd();
        self.push_held();
        self.inner.submit()?;
        // The signal of a kick was consumed, if it was one.
        Ok(Wake { kicked: true })
    }
}

impl IoEngine for RecordedEngine {
    #[inline]
    fn push(&mut self, request: Request<'_>) {
        if self.has_to_wait(request.tag, request.op, request.segments) {
            return self.hold(request.tag, request.op, mem::take(request.segments));
        }
        self.inner.push(request);
    }

    #[inline]
    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let op = Operation::volatile_transfer(at, is_write);
        if self.has_to_wait(tag, op, std::slice::from_ref(&segment)) {
            return self.hold(tag, op, vec![segment]);
        }
        self.inner.push_contiguous(tag, segment, at, is_write);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.recorder.end_batch();
        if !self.held.is_empty() {
            self.push_held();
        }
        self.inner.submit()
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        if !self.held.is_empty() {
            // Before the log thread gets the memory of what the disk completed.
            self.see_log();
        }
        let before = completed.len();
        self.inner.reap(completed);
        self.recorder.complete(completed.get(before..).unwrap_or_default());
        completed.append(&mut self.cancelled);
        if !self.held.is_empty() {
            self.push_held();
        }
    }

    /// Held requests are not among them: they are pushed when the disk completes those before, or
    /// within [`GUEST_PATIENCE`].
    fn parked(&self) -> usize {
        self.inner.parked()
    }

    fn due(&self) -> Option<Instant> {
        [self.held_until(), self.inner.due()].into_iter().flatten().min()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let Some(held) = self.held.iter().position(|held| held.tag == tag) else {
            return self.inner.cancel(tag);
        };
        self.held.remove(held);
        let result = Err(io::Error::from_raw_os_error(libc::ECANCELED));
        self.cancelled.push(Completion { tag, result });
        true
    }

    fn is_ready(&self) -> bool {
        !self.cancelled.is_empty() || self.inner.is_ready()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.inner.poll_fd()
    }

    fn clear_poll_fd(&mut self) {
        self.inner.clear_poll_fd();
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.recorder.end_batch();
        if !self.held.is_empty() || !self.cancelled.is_empty() {
            return self.wait_held();
        }
        self.inner.wait()
    }
}
