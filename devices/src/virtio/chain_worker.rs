//! The loop of a queue whose chains are answered on the spot: entropy and network.
//!
//! Runs on the queue's own thread and, like the storage loop, never ends because of what a driver wrote.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use super::{
    ActivateError, ActiveQueue, Chain, FaultReporter, Head, Interrupt, Queue, QueueError, Stop,
    Worker,
};
use crate::GuestMap;
use crate::event;

/// What became of a chain.
pub(super) enum Handled {
    /// Answered, with this many bytes written into it.
    Used(u32),
    /// Not yet: to be offered again when [`ChainHandler::source`] is readable.
    Wait,
    /// Not now: to be offered again after this time.
    Later(Duration),
}

/// What a device does with the chains of one queue.
pub(super) trait ChainHandler: Send + 'static {
    /// Answers a chain.
    ///
    /// # Errors
    ///
    /// What the driver did wrong, if there is no way to answer.
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError>;

    /// What to wait for after [`Handled::Wait`].
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
) -> Result<Worker, ActivateError> {
    let kick = Arc::clone(&active.kick);
    let start = move || {
        Ok(ChainWorker {
            queue: active.queue,
            kick: active.kick,
            interrupt: active.interrupt,
            chain: Chain::default(),
            held: None,
            later: None,
            broken: false,
            faults,
            handler,
        })
    };
    Worker::spawn(name, kick, start, |mut worker, stop| worker.run(stop))
}

struct ChainWorker<H> {
    queue: Queue,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    chain: Chain,
    /// The head of `chain`, while it waits.
    held: Option<Head>,
    /// How long, if not for the source.
    later: Option<Duration>,
    /// The ring is corrupt: nothing more is taken from it.
    broken: bool,
    faults: FaultReporter,
    handler: H,
}

impl<H: ChainHandler> ChainWorker<H> {
    fn run(&mut self, stop: &Stop) {
        while !stop.requested() {
            self.queue.disarm_kick();
            if let Err(error) = self.serve() {
                self.broken = true;
                self.faults.needs_reset(&error);
            }
            if self.queue.publish() {
                self.interrupt.signal();
            }
            if self.broken || self.held.is_some() || self.queue.arm_kick() {
                self.sleep();
            }
        }
    }

    /// Answers chains until there is none or one must wait, but at most a ring full: a driver that goes
    /// on offering must not keep the loop from its end.
    fn serve(&mut self) -> Result<(), QueueError> {
        for _ in 0..self.queue.size() {
            if self.broken {
                break;
            }
            let head = match self.held.take() {
                Some(head) => head,
                None => match self.queue.pop(&mut self.chain)? {
                    Some(head) => head,
                    None => break,
                },
            };
            self.later = match self.handler.handle(&self.chain, self.queue.map())? {
                Handled::Used(written) => {
                    self.queue.push_used(head, written);
                    continue;
                }
                Handled::Wait => None,
                Handled::Later(pause) => Some(pause),
            };
            self.held = Some(head);
            break;
        }
        Ok(())
    }

    /// Sleeps until a kick, or until there is something for the chain that waits, or its time has come.
    fn sleep(&mut self) {
        let kick = PollFd::from_borrowed_fd(event::as_fd(&self.kick), PollFlags::IN);
        let later = self.later.filter(|_| self.held.is_some());
        let source = self.handler.source().filter(|_| self.held.is_some() && later.is_none());
        // Without a source the kick is polled twice, which does no harm.
        let source = source.unwrap_or(event::as_fd(&self.kick));
        let mut fds = [kick, PollFd::from_borrowed_fd(source, PollFlags::IN)];
        // Interrupted or not, the loop looks again.
        let _ = poll(&mut fds, later.and_then(|pause| pause.try_into().ok()).as_ref());
        let _ = self.kick.read();
    }
}
