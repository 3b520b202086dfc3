//! The loop between one queue and one engine, the same for every storage protocol.
//!
//! Runs on the queue's own thread. A round is: settle what the engine completed, accept what the driver
//! made available, publish both with at most one interrupt. After it the worker looks for more for a moment
//! (`polling.rs`), or asks the driver for a kick and sleeps in the engine until there is more. Nothing in it allocates, locks or hashes per request. It must never end or block because
//! of what a driver wrote: a bad request gets its status, a corrupt ring asks for a reset and
//! leaves the thread waiting for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use block::{
    Completion, EngineSetup, IoEngine, MemoryRegion, OpenError, Operation, Request, Segments,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::in_flight::{Entry, InFlight};
use super::polling::Polling;
use super::stats::{Kind, QueueStats, Round, Tally};
use crate::interrupt::{FaultReporter, Interrupt};
use crate::virtio::{ActivateError, ActiveQueue, HandOver};
use crate::virtqueue::{Chain, Head, Position, Queue, QueueError};
use crate::worker::{Stop, Worker};
use crate::{GuestMap, GuestMemory, event};

/// What a chain turned out to be.
#[derive(Debug)]
pub enum Parsed<P> {
    /// A request for the engine. Its segments were filled in.
    Io {
        /// Which of the queue's disks it is for; 0 where there is one.
        unit: u16,
        /// What is asked of the disk.
        op: Operation,
        /// What the protocol needs to complete it.
        pending: P,
    },
    /// Answered already.
    Done {
        /// Bytes written into the chain's writable buffers.
        written: u32,
    },
    /// There is no place for an answer.
    Fatal(QueueError),
}

/// A storage protocol: how a chain reads as a request, and how its outcome is written.
pub trait Protocol: Send + 'static {
    /// What is remembered of a request until it completes.
    type Pending;

    /// What serves a queue.
    type Engines: Engines;

    /// Reads a request out of its chain, once, and checks it. Does no I/O. `segments` is empty
    /// and takes the request's data buffers.
    fn parse(
        &mut self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<Self::Pending>;

    /// Writes a request's outcome, or asks on. `pending` is spent when the request is done. `segments` is empty and takes
    /// the data buffers of what is asked next.
    fn complete(
        &mut self,
        pending: &mut Self::Pending,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Completed;

    /// An engine has completed what it was asked for a request. `bytes` is `None` if it failed.
    #[inline]
    fn count(&mut self, _pending: &Self::Pending, _kind: Kind, _bytes: Option<u64>, _took_ns: u64) {
    }

    /// A round is over.
    #[inline]
    fn count_round(&mut self, _round: &Round) {}

    /// Whether the requests in flight are to be [looked at](Self::review), with all that the driver has made available by now:
    /// somebody wants an end of some.
    #[inline]
    fn wants_review(&mut self) -> bool {
        false
    }

    /// Looks at a request in flight. Returns its unit if it is to be cancelled where it can be.
    fn review(&mut self, _pending: &mut Self::Pending) -> Option<u16> {
        None
    }

    /// The driver can see all that was completed.
    #[inline]
    fn published(&mut self) {}
}

/// What an engine's completion led to.
#[derive(Clone, Copy, Debug)]
pub enum Completed {
    /// The request is done.
    Done {
        /// Bytes written into the chain's writable buffers.
        written: u32,
    },
    /// More has to be asked. Its segments were filled in.
    Again {
        /// Which of the queue's disks is asked.
        unit: u16,
        /// What is asked of it.
        op: Operation,
    },
}

/// The engines of one queue: one for each disk. With one disk it is that disk's engine.
pub trait Engines {
    /// Takes a request for a unit. See [`IoEngine::push`].
    fn push(&mut self, unit: u16, request: Request<'_>);

    /// See [`IoEngine::submit`].
    ///
    /// # Errors
    ///
    /// An engine cannot go on.
    fn submit(&mut self) -> io::Result<()>;

    /// See [`IoEngine::reap`].
    fn reap(&mut self, completed: &mut Vec<Completion>);

    /// See [`IoEngine::parked`].
    fn parked(&self) -> usize;

    /// See [`IoEngine::cancel`].
    fn cancel(&mut self, unit: u16, tag: u16) -> bool;

    /// See [`IoEngine::wait`].
    ///
    /// # Errors
    ///
    /// An engine cannot go on.
    fn wait(&mut self) -> io::Result<()>;
}

impl Engines for Box<dyn IoEngine> {
    #[inline]
    fn push(&mut self, _unit: u16, request: Request<'_>) {
        (**self).push(request);
    }

    #[inline]
    fn submit(&mut self) -> io::Result<()> {
        (**self).submit()
    }

    #[inline]
    fn reap(&mut self, completed: &mut Vec<Completion>) {
        (**self).reap(completed);
    }

    fn parked(&self) -> usize {
        (**self).parked()
    }

    fn cancel(&mut self, _unit: u16, tag: u16) -> bool {
        (**self).cancel(tag)
    }

    #[inline]
    fn wait(&mut self) -> io::Result<()> {
        (**self).wait().map(drop)
    }
}

/// Starts the worker of one queue on the engines that `engines` makes on its thread.
///
/// # Errors
///
/// When the host refuses the engine or the thread.
pub fn spawn<P: Protocol>(
    name: String,
    mut active: ActiveQueue,
    faults: FaultReporter,
    engines: impl FnOnce(&EngineSetup<'_>) -> Result<P::Engines, OpenError> + Send + 'static,
    stats: Arc<QueueStats>,
    protocol: P,
) -> Result<Worker, ActivateError> {
    let kick = Arc::clone(&active.kick);
    let hand_over = active.hand_over.take();
    Worker::spawn(
        name,
        kick,
        move || QueueWorker::new(active, faults, engines, stats, protocol),
        |mut worker, stop| {
            worker.run(stop);
            if let Some(HandOver { position, report_held }) = hand_over {
                let reached = worker.finish(report_held.load(Ordering::Acquire));
                // Ended before anybody asks for the position: the engine closes its files.
                drop(worker);
                // Whoever asked may have gone.
                let _ = position.send(reached);
            }
        },
    )
}

/// One queue, one engine, one protocol. In a machine a thread [runs](Self::run) it; the simulator in
/// `tests/` calls it [round](Self::round) by round.
pub struct QueueWorker<P: Protocol> {
    // The engines are dropped first: they drain, and what is in flight points into the memory that `queue` keeps.
    engines: P::Engines,
    queue: Queue,
    protocol: P,
    in_flight: InFlight<P::Pending>,
    chain: Chain,
    /// Those of the request that is being parsed.
    segments: Segments,
    /// What the engine completed since the last round.
    completed: Vec<Completion>,
    interrupt: Interrupt,
    faults: FaultReporter,
    stats: Arc<QueueStats>,
    /// When the worker was made: all times count from here.
    epoch: Instant,
    /// Since when the ring may hold what no round took, in nanoseconds: the start
    /// of a round that had more to do. `None` if the worker slept until a kick or a completion.
    pending_since_ns: Option<u64>,
    /// When the last round began and ended.
    round_ns: (u64, u64),
    polling: Polling,
    /// The ring is corrupt: nothing more is taken from it.
    broken: bool,
    /// Open as long as the engine watches it.
    _kick: Arc<EventFd>,
}

impl<P: Protocol> QueueWorker<P> {
    /// Makes the engine of a queue and the loop around both, on the thread that will use them.
    ///
    /// # Errors
    ///
    /// When the host refuses the engine.
    pub fn new(
        active: ActiveQueue,
        faults: FaultReporter,
        engines: impl FnOnce(&EngineSetup<'_>) -> Result<P::Engines, OpenError>,
        stats: Arc<QueueStats>,
        protocol: P,
    ) -> Result<Self, ActivateError> {
        let depth = active.queue.size();
        let regions = memory_regions(active.queue.map().memory())?;
        let setup = EngineSetup { depth, memory: &regions, kick: event::as_fd(&active.kick) };
        let engines = engines(&setup)?;
        Ok(Self {
            engines,
            in_flight: InFlight::new(depth),
            chain: Chain::default(),
            segments: Segments::new(),
            completed: Vec::with_capacity(usize::from(depth)),
            queue: active.queue,
            protocol,
            interrupt: active.interrupt,
            faults,
            stats,
            epoch: Instant::now(),
            pending_since_ns: None,
            round_ns: (0, 0),
            polling: Polling::default(),
            broken: false,
            _kick: active.kick,
        })
    }

    /// Serves the queue until it is asked to end.
    pub fn run(&mut self, stop: &Stop) {
        while !stop.requested() {
            // With more to do, what the round started still goes to the host before the next one.
            let turned = match self.round() {
                false => self.engines.submit(),
                true if self.poll(stop) => Ok(()),
                true => self.wait(),
            };
            if let Err(error) = turned {
                self.faults.needs_reset(&format_args!("its engine failed: {error}"));
                return;
            }
        }
    }

    /// Does what can be done now. Returns whether there was nothing more to do when it ended: the driver was
    /// not asked for a kick, which [`Self::wait`] does.
    #[must_use = "there may be more to do"]
    pub fn round(&mut self) -> bool {
        let now_ns = self.now_ns();
        self.queue.disarm_kick();
        let settled = self.settle(now_ns);
        let kept = self.in_flight.len();
        // Before the ring is looked at: what is to end was made available before its end was asked for.
        let reviews = self.protocol.wants_review();
        self.accept(now_ns);
        if reviews {
            self.review();
        }
        let interrupt = self.queue.publish();
        if interrupt {
            self.interrupt.signal();
        }
        self.protocol.published();
        let in_flight = self.in_flight.len();
        self.stats.in_flight(in_flight);
        let end_ns = self.now_ns();
        let round = Round {
            start_ns: now_ns,
            end_ns,
            settled,
            taken: u64::from(in_flight - kept),
            waited_ns: self.pending_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns)),
            interrupt,
        };
        self.stats.round(&round);
        self.protocol.count_round(&round);
        self.round_ns = (now_ns, end_ns);
        let has_more = self.can_take() && self.queue.has_available();
        self.pending_since_ns = (has_more || !self.can_take()).then_some(now_ns);
        !has_more
    }

    /// Cancels what the protocol wants an end of.
    #[cold]
    fn review(&mut self) {
        for (tag, entry) in self.in_flight.entries() {
            if let Some(unit) = self.protocol.review(&mut entry.pending) {
                // What cannot be cancelled ends by itself.
                let _ = self.engines.cancel(unit, tag);
            }
        }
    }

    /// Whether the next chain would be taken.
    fn can_take(&self) -> bool {
        !self.broken && !self.in_flight.is_full()
    }

    /// Asks the driver for a kick, hands to the host what the round started, and sleeps until a kick or a completion. Does
    /// not sleep if the driver came before it was asked.
    ///
    /// # Errors
    ///
    /// The engine cannot go on.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.can_take() && !self.queue.arm_kick() {
            self.pending_since_ns = Some(self.round_ns.0);
            return self.engines.submit();
        }
        if self.in_flight.len() > 0 {
            return self.engines.wait();
        }
        let since_ns = self.now_ns();
        let woken = self.engines.wait();
        self.polling.slept(self.now_ns() - since_ns);
        self.stats.polls_for(self.polling.budget_ns());
        woken
    }

    /// Looks at the ring for a moment, if the driver is likely to come back within it. Returns whether there is something
    /// to do.
    fn poll(&mut self, stop: &Stop) -> bool {
        if self.in_flight.len() > 0 || !self.can_take() {
            return false;
        }
        let Some(mut poll) = self.polling.begin(self.round_ns.1) else { return false };
        loop {
            let looked_ns = poll.looked_ns();
            let found = poll.spin(|| self.queue.has_available()) || {
                thread::yield_now();
                self.stats.yielded();
                self.queue.has_available()
            };
            let now_ns = self.now_ns();
            if let Some(found) = self.polling.looked(&mut poll, found || stop.requested(), now_ns) {
                self.pending_since_ns = found.then_some(looked_ns);
                self.stats.polls_for(self.polling.budget_ns());
                return found;
            }
        }
    }

    /// Takes nothing more from the ring, gives back what is in flight as it completes, and says how far
    /// the queue came. What waits for space on the host is not waited for: it is reported as failed, or owed.
    pub fn finish(&mut self, report_held: bool) -> Position {
        loop {
            self.settle(self.now_ns());
            let is_settled = usize::from(self.in_flight.len()) <= self.engines.parked();
            let left = if is_settled { self.in_flight.drain() } else { Vec::new() };
            let mut owed = Vec::new();
            for (head, mut entry) in left {
                if report_held {
                    let result = match entry.kind {
                        // Advice, which may come to nothing; most likely it waits for its turn.
                        Kind::Discard => Ok(()),
                        _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                    };
                    let (map, segments) = (self.queue.map(), &mut self.segments);
                    let pending = &mut entry.pending;
                    match self.protocol.complete(pending, map, result, segments) {
                        Completed::Done { written } => self.queue.push_used(head, written),
                        Completed::Again { .. } => owed.push(head),
                    }
                } else {
                    owed.push(head);
                }
            }
            if self.queue.publish() {
                self.interrupt.signal();
            }
            if is_settled {
                return self.queue.position(owed.into_iter());
            }
            if let Err(error) = self.engines.wait() {
                tracing::error!(target: "virtio", %error, "an engine ended with requests in flight");
                let owed = self.in_flight.drain().into_iter().map(|(head, _)| head);
                return self.queue.position(owed);
            }
        }
    }

    /// Gives back to the driver what the engine completed, and returns how many.
    #[inline(never)]
    fn settle(&mut self, now_ns: u64) -> u64 {
        self.engines.reap(&mut self.completed);
        self.segments.clear();
        let mut settled = 0;
        let mut tally = Tally::new(&self.stats);
        for Completion { tag, result } in self.completed.drain(..) {
            let Some((head, entry)) = self.in_flight.remove(tag) else {
                tracing::error!(target: "virtio", "the engine completed tag {tag} twice");
                continue;
            };
            let bytes = result.is_ok().then_some(entry.bytes);
            let took_ns = now_ns.saturating_sub(entry.since_ns);
            tally.completed(entry.kind, bytes, took_ns);
            self.protocol.count(&entry.pending, entry.kind, bytes, took_ns);
            let (map, segments) = (self.queue.map(), &mut self.segments);
            match self.protocol.complete(&mut entry.pending, map, result, segments) {
                Completed::Done { written } => {
                    self.queue.push_used(head, written);
                    settled += 1;
                }
                Completed::Again { unit, op } => {
                    (entry.kind, entry.bytes) = (Kind::of(&op), bytes_moved(&op, segments));
                    entry.since_ns = now_ns;
                    self.in_flight.keep(tag, head);
                    self.engines.push(unit, Request { tag, op, segments });
                    segments.clear();
                }
            }
        }
        settled
    }

    /// Takes what the driver made available, as far as there are free slots. No more than the queue
    /// holds, so that a driver that offers without end does not keep the worker from its other duties.
    #[inline(never)]
    fn accept(&mut self, now_ns: u64) {
        for _ in 0..self.queue.size() {
            if self.broken || self.in_flight.is_full() {
                return;
            }
            match self.queue.pop(&mut self.chain) {
                Ok(Some(head)) => self.start(head, now_ns),
                Ok(None) => return,
                Err(error) => self.give_up(error),
            }
        }
    }

    /// Starts one request. There is a slot for it.
    #[inline]
    fn start(&mut self, head: Head, now_ns: u64) {
        self.segments.clear();
        match self.protocol.parse(&self.chain, self.queue.map(), &mut self.segments) {
            Parsed::Io { unit, op, pending } => {
                let bytes = bytes_moved(&op, &self.segments);
                let entry = Entry { pending, kind: Kind::of(&op), bytes, since_ns: now_ns };
                let Some(tag) = self.in_flight.insert(head, entry) else { return };
                self.engines.push(unit, Request { tag, op, segments: &mut self.segments });
            }
            Parsed::Done { written } => {
                self.stats.answered();
                self.queue.push_used(head, written);
            }
            Parsed::Fatal(error) => {
                self.queue.push_used(head, 0);
                self.give_up(error);
            }
        }
    }

    /// Nanoseconds since the worker was made. Read without a system call.
    fn now_ns(&self) -> u64 {
        let elapsed = self.epoch.elapsed();
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    /// The ring cannot be trusted any more; what is in flight still completes.
    #[cold]
    fn give_up(&mut self, error: QueueError) {
        self.broken = true;
        self.faults.needs_reset(&error);
    }
}

impl<P: Protocol> Drop for QueueWorker<P> {
    /// What the engine still holds ends with it, uncounted.
    fn drop(&mut self) {
        self.stats.in_flight(0);
    }
}

/// How many bytes an operation moves, discards or zeroes.
fn bytes_moved(op: &Operation, segments: &Segments) -> u64 {
    match op {
        Operation::Read { .. } | Operation::Write { .. } => match segments.as_slice() {
            [one] => one.len() as u64,
            several => several.iter().map(|segment| segment.len() as u64).sum(),
        },
        // Half of it is only compared.
        Operation::CompareAndWrite { .. } => {
            segments.iter().map(|segment| segment.len() as u64).sum::<u64>() / 2
        }
        Operation::Flush => 0,
        Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => range.len,
    }
}

/// Guest memory as the engine may register it.
fn memory_regions(memory: &GuestMemory) -> Result<Vec<MemoryRegion>, ActivateError> {
    memory
        .iter()
        .map(|region| {
            let whole = region.as_volatile_slice().map_err(|error| ActivateError::Host {
                what: "look at guest memory",
                source: io::Error::other(error),
            })?;
            Ok(MemoryRegion { base: whole.ptr_guard_mut().as_ptr(), len: whole.len() })
        })
        .collect()
}
