//! The loop of a queue whose chains are answered in place: network, entropy, SCSI control and
//! events.
//!
//! Runs on the queue's own thread. As the storage loop it never ends because of the driver.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::Interrupt;
use crate::virtqueue::{ActiveQueue, Chain, FaultReporter, Head, Queue, QueueError};
use crate::worker::{StartError, Stop, Worker};
use crate::{GuestMap, event};

/// The result of handling a chain.
pub(super) enum Handled {
    /// The chain is answered, with this number of bytes written to it.
    Used(u32),
    /// The chain is handled again when [`ChainHandler::source`] is readable.
    WaitForSource,
    /// The chain is handled again after this time.
    Retry(Duration),
}

/// A device's handler for the chains of one queue.
pub(super) trait ChainHandler: Send + 'static {
    /// Answers a chain.
    ///
    /// # Errors
    ///
    /// The chain has no buffer for an answer. The device needs a reset.
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError>;

    /// The descriptor to poll after [`Handled::WaitForSource`].
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Starts the worker of one queue.
pub(super) fn spawn(
    name: String,
    active: ActiveQueue,
    faults: FaultReporter,
    handler: impl ChainHandler,
) -> Result<Worker, StartError> {
    let kick = Arc::clone(&active.kick);
    let start = move || Ok(ChainWorker::new(active, faults, handler));
    Worker::spawn(name, kick, start, |mut worker, stop| worker.run(stop))
}

/// The loop of one queue without a thread: each call is a round. Returns whether the loop would
/// sleep after it.
pub(super) fn rounds(
    active: ActiveQueue,
    faults: FaultReporter,
    handler: impl ChainHandler,
) -> impl FnMut() -> bool {
    let mut worker = ChainWorker::new(active, faults, handler);
    move || worker.round()
}

struct ChainWorker<H> {
    queue: Queue,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    chain: Chain,
    /// Head of `chain` while that waits.
    waiting: Option<Head>,
    /// When to retry `chain`; `None` if it waits for the source.
    retry_after: Option<Duration>,
    /// The ring is malformed: no more chains are taken from it.
    broken: bool,
    faults: FaultReporter,
    handler: H,
}

impl<H: ChainHandler> ChainWorker<H> {
    fn new(active: ActiveQueue, faults: FaultReporter, handler: H) -> Self {
        Self {
            queue: active.queue,
            kick: active.kick,
            interrupt: active.interrupt,
            chain: Chain::default(),
            waiting: None,
            retry_after: None,
            broken: false,
            faults,
            handler,
        }
    }

    fn run(&mut self, stop: &Stop) {
        while !stop.requested() {
            if self.round() {
                self.sleep();
            }
        }
    }

    /// Handles the available chains, publishes their answers and asks for a kick. Returns whether
    /// nothing is left to do until an event.
    fn round(&mut self) -> bool {
        self.queue.disarm_kick();
        if let Err(error) = self.serve() {
            self.broken = true;
            self.faults.needs_reset(&error);
        }
        if self.queue.publish() {
            self.interrupt.signal();
        }
        self.broken || self.waiting.is_some() || self.queue.arm_kick()
    }

    /// Handles chains until none is available or one has to wait, at most as many as the queue has
    /// entries: a driver that never stops offering must not keep the loop from `stop`.
    fn serve(&mut self) -> Result<(), QueueError> {
        for _ in 0..self.queue.size() {
            if self.broken {
                break;
            }
            let head = match self.waiting.take() {
                Some(head) => head,
                None => match self.queue.pop(&mut self.chain)? {
                    Some(head) => head,
                    None => break,
                },
            };
            self.retry_after = match self.handler.handle(&self.chain, self.queue.map()) {
                Ok(Handled::Used(written)) => {
                    self.queue.push_used(head, written);
                    continue;
                }
                Ok(Handled::WaitForSource) => None,
                Ok(Handled::Retry(pause)) => Some(pause),
                Err(error) => {
                    self.queue.abandon(head);
                    return Err(error);
                }
            };
            self.waiting = Some(head);
            break;
        }
        Ok(())
    }

    /// Sleeps until a kick, the source of the waiting chain, or its retry.
    fn sleep(&mut self) {
        let kick = PollFd::from_borrowed_fd(event::as_fd(&self.kick), PollFlags::IN);
        let retry_after = self.retry_after.filter(|_| self.waiting.is_some());
        let waits_for_source = self.waiting.is_some() && retry_after.is_none();
        let source = self.handler.source().filter(|_| waits_for_source);
        // Without a source the kick is polled twice, which is harmless.
        let source = source.unwrap_or(event::as_fd(&self.kick));
        let mut fds = [kick, PollFd::from_borrowed_fd(source, PollFlags::IN)];
        // An interrupted poll is as good as a wake-up: the loop checks everything.
        let _ = poll(&mut fds, retry_after.and_then(|pause| pause.try_into().ok()).as_ref());
        let _ = self.kick.read();
    }
}

impl<H> Drop for ChainWorker<H> {
    /// A chain that waits ends with its queue.
    fn drop(&mut self) {
        if let Some(head) = self.waiting.take() {
            self.queue.abandon(head);
        }
    }
}
