//! The loop between one queue and its engines, common to all storage protocols.
//!
//! Runs on the queue's own thread. A round reaps completions, accepts available chains and
//! publishes both results with at most one interrupt. Between rounds the worker polls for a moment
//! (`polling.rs`) or asks the driver for a kick and sleeps in the engine. A round never allocates,
//! locks or hashes per request. The loop never blocks or ends because of the driver: a malformed
//! request gets its status; a broken ring needs a reset, for which the thread waits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use ::block::{Completion, EngineSetup, MemoryRegion, OpenError, Operation, Request, Segments};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::engines::Engines;
use super::in_flight::{InFlightRequest, InFlightTable};
use super::polling::Polling;
use super::protocol::{Completed, Parsed, Protocol};
use super::stats::{OperationKind, QueueStats, Round, SCAN_INTERVAL_NS, Tally};
use crate::interrupt::Interrupt;
use crate::virtqueue::{
    ActiveQueue, Chain, FaultReporter, HandOver, Head, Position, Queue, QueueError,
};
use crate::worker::{StartError, Stop, Worker};
use crate::{GuestMemory, event};

/// One queue, its engines and its protocol. In a machine a thread [runs](Self::run) it; the
/// simulator calls [round](Self::round) and [wait](Self::wait) itself.
pub struct QueueWorker<P: Protocol> {
    // Dropped first: engines drain, and requests in flight point into the memory that `queue`,
    // `in_flight` and `abandoned` keep.
    engines: P::Engines,
    queue: Queue,
    protocol: P,
    in_flight: InFlightTable<Head, P::Pending>,
    /// State of requests whose heads are gone and that the engines may still work on.
    abandoned: Vec<P::Pending>,
    chain: Chain,
    /// Data buffers of the request that is being started.
    segments: Segments,
    /// Completions of the current round.
    completed: Vec<Completion>,
    interrupt: Interrupt,
    faults: FaultReporter,
    stats: Arc<QueueStats>,
    /// Start of the worker's clock.
    epoch: Instant,
    /// Start of the round that left chains in the ring, in nanoseconds of the worker's clock.
    /// `None` if the worker slept until a kick or a completion.
    pending_since_ns: Option<u64>,
    /// Start and end of the last round.
    round_ns: (u64, u64),
    /// When the requests in flight are scanned for the oldest one.
    next_scan_ns: u64,
    polling: Polling,
    /// The ring is malformed: no more chains are taken from it.
    broken: bool,
    /// Kept open while the engines watch it.
    _kick: Arc<EventFd>,
}

impl<P: Protocol> QueueWorker<P> {
    /// Makes the engines of a queue and the loop around them, on the thread that will use them.
    ///
    /// # Errors
    ///
    /// The host refuses an engine.
    pub fn new(
        active: ActiveQueue,
        faults: FaultReporter,
        engines: impl FnOnce(&EngineSetup<'_>) -> Result<P::Engines, OpenError>,
        stats: Arc<QueueStats>,
        protocol: P,
    ) -> Result<Self, StartError> {
        let depth = active.queue.size();
        let regions = memory_regions(active.queue.map().memory())?;
        let setup = EngineSetup { depth, memory: &regions, kick: event::as_fd(&active.kick) };
        let engines = engines(&setup)?;
        Ok(Self {
            engines,
            in_flight: InFlightTable::new(depth),
            abandoned: Vec::new(),
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
            next_scan_ns: 0,
            polling: Polling::default(),
            broken: false,
            _kick: active.kick,
        })
    }

    /// Starts the worker of a queue on a thread called `name`. `engines` makes the engines on that
    /// thread.
    ///
    /// # Errors
    ///
    /// The host refuses an engine or the thread.
    pub fn spawn(
        name: String,
        mut active: ActiveQueue,
        faults: FaultReporter,
        engines: impl FnOnce(&EngineSetup<'_>) -> Result<P::Engines, OpenError> + Send + 'static,
        stats: Arc<QueueStats>,
        protocol: P,
    ) -> Result<Worker, StartError> {
        let kick = Arc::clone(&active.kick);
        let hand_over = active.hand_over.take();
        let start = move || Self::new(active, faults, engines, stats, protocol);
        Worker::spawn(name, kick, start, |mut worker, stop| {
            worker.run(stop);
            if let Some(HandOver { position, fail_held }) = hand_over {
                let reached = worker.drain(fail_held.load(Ordering::Acquire));
                // The engines close their files before the position is reported.
                drop(worker);
                // Fails if the receiver no longer waits.
                let _ = position.send(reached);
            }
        })
    }

    /// Serves the queue until `stop` is requested.
    pub fn run(&mut self, stop: &Stop) {
        while !stop.requested() {
            // With more chains available, the requests of this round reach the host before the
            // next.
            let progress = match self.round() {
                false => self.engines.submit(),
                true if self.poll(stop) => Ok(()),
                true => self.wait(),
            };
            if let Err(error) = progress {
                self.faults.needs_reset(&format_args!("its engine failed: {error}"));
                return;
            }
        }
    }

    /// Reaps, accepts and publishes without waiting. Returns whether no chain was left at its end;
    /// the driver was not asked for a kick, which [`Self::wait`] does.
    #[must_use = "chains may be left"]
    pub fn round(&mut self) -> bool {
        let now_ns = self.now_ns();
        self.queue.disarm_kick();
        let mut completed = self.reap(now_ns);
        if P::Engines::HAS_QUERIES {
            completed += self.reap_queries();
        }
        let before = self.in_flight.len();
        // Before chains are accepted: a request to be cancelled was available before the order.
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
        self.stats.set_in_flight(in_flight);
        let end_ns = self.now_ns();
        let round = Round {
            start_ns: now_ns,
            end_ns,
            completed,
            started: u64::from(in_flight - before),
            waited_ns: self.pending_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns)),
            interrupt,
        };
        self.stats.count_round(&round);
        self.protocol.count_round(&round);
        self.round_ns = (now_ns, end_ns);
        if end_ns >= self.next_scan_ns {
            self.scan(end_ns);
        }
        let has_more = self.can_accept() && self.queue.has_available();
        self.pending_since_ns = (has_more || !self.can_accept()).then_some(now_ns);
        !has_more
    }

    /// Records the age of the oldest request in flight.
    #[cold]
    fn scan(&mut self, now_ns: u64) {
        self.next_scan_ns = now_ns + SCAN_INTERVAL_NS;
        self.protocol.record_age(None, 0);
        let age_ns =
            |request: &InFlightRequest<P::Pending>| now_ns.saturating_sub(request.since_ns);
        let mut oldest = None;
        for (_, request) in self.in_flight.requests() {
            let age_ns = age_ns(request);
            self.protocol.record_age(Some(&request.pending), age_ns);
            oldest = oldest.max(Some(age_ns));
        }
        self.stats.set_oldest(oldest);
    }

    /// Cancels the requests that the protocol selects.
    #[cold]
    fn review(&mut self) {
        for (tag, request) in self.in_flight.requests() {
            if let Some(unit) = self.protocol.review(&mut request.pending) {
                // A request that the host works on completes as usual.
                let _ = self.engines.cancel(unit, tag);
            }
        }
    }

    /// Whether the next chain can be taken.
    fn can_accept(&self) -> bool {
        !self.broken && !self.in_flight.is_full()
    }

    /// Asks the driver for a kick, submits the requests of the round and sleeps until a kick or a
    /// completion. Does not sleep if a chain became available before the request for a kick.
    ///
    /// # Errors
    ///
    /// An engine cannot continue.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.can_accept() && !self.queue.arm_kick() {
            self.pending_since_ns = Some(self.round_ns.0);
            return self.engines.submit();
        }
        if self.in_flight.len() > 0 {
            return self.engines.wait();
        }
        let since_ns = self.now_ns();
        let woken = self.engines.wait();
        self.polling.slept(self.now_ns() - since_ns);
        self.stats.set_poll_budget(self.polling.budget_ns());
        woken
    }

    /// Polls the ring if the driver is likely to return soon. Returns whether there is work.
    fn poll(&mut self, stop: &Stop) -> bool {
        if self.in_flight.len() > 0 || !self.can_accept() {
            return false;
        }
        let Some(mut poll) = self.polling.begin(self.round_ns.1) else { return false };
        loop {
            let checked_ns = poll.checked_ns();
            let found = poll.spin(|| self.queue.has_available()) || {
                thread::yield_now();
                self.stats.count_yield();
                self.queue.has_available()
            };
            let (now_ns, found) = (self.now_ns(), found || stop.requested());
            if let Some(found) = self.polling.checked(&mut poll, found, now_ns) {
                self.pending_since_ns = found.then_some(checked_ns);
                self.stats.set_poll_budget(self.polling.budget_ns());
                return found;
            }
        }
    }

    /// Returns the requests in flight as they complete, accepts no chains and reports the position
    /// reached. Requests held for ENOSPC are not drained: with `fail_held` they fail, otherwise the
    /// position owes them.
    pub fn drain(&mut self, fail_held: bool) -> Position {
        loop {
            self.reap(self.now_ns());
            let is_drained = usize::from(self.in_flight.len()) <= self.engines.parked();
            if is_drained && fail_held {
                self.fail_parked();
            }
            if self.queue.publish() {
                self.interrupt.signal();
            }
            if is_drained {
                let owed = self.abandon();
                return self.queue.position(owed.into_iter());
            }
            if let Err(error) = self.engines.wait() {
                let left = self.in_flight.len();
                tracing::error!(target: "virtio", %error, left, "an engine failed while draining");
                let owed = self.abandon();
                return self.queue.position(owed.into_iter());
            }
        }
    }

    /// Takes the heads of all requests, oldest first. Their state stays until the engines are gone.
    fn abandon(&mut self) -> Vec<Head> {
        let left = self.in_flight.drain();
        let mut heads = Vec::with_capacity(left.len());
        for (head, request) in left {
            self.abandoned.push(request.pending);
            heads.push(head);
        }
        heads
    }

    /// Answers the parked requests, which no other worker will complete. Those whose command has
    /// further operations cannot be answered here, and stay.
    fn fail_parked(&mut self) {
        for (head, mut request) in self.in_flight.drain() {
            let result = match request.kind {
                // A discard is a hint; a parked one usually waits to be merged or paced.
                OperationKind::Discard => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            };
            let (map, segments) = (self.queue.map(), &mut self.segments);
            match self.protocol.complete(&mut request.pending, map, result, segments) {
                Completed::Done { written } => {
                    self.queue.push_used(head, written);
                    self.abandoned.push(request.pending);
                }
                // The table has a slot for each request that was in it.
                Completed::Again { .. } => drop(self.in_flight.insert(head, request)),
            }
        }
    }

    /// Completes the requests that the engines completed. Returns the number of chains returned.
    #[inline(never)]
    fn reap(&mut self, now_ns: u64) -> u64 {
        self.engines.reap(&mut self.completed);
        self.segments.clear();
        let mut returned = 0;
        let mut tally = Tally::new(&self.stats);
        for Completion { tag, result } in self.completed.drain(..) {
            let Some((head, request)) = self.in_flight.remove(tag) else {
                tracing::error!(target: "virtio", "the engine completed tag {tag} twice");
                continue;
            };
            let bytes = result.is_ok().then_some(request.bytes);
            let took_ns = now_ns.saturating_sub(request.since_ns);
            tally.add(request.kind, bytes, took_ns);
            self.protocol.count(&request.pending, request.kind, bytes, took_ns);
            let (map, segments) = (self.queue.map(), &mut self.segments);
            match self.protocol.complete(&mut request.pending, map, result, segments) {
                Completed::Done { written } => {
                    self.queue.push_used(head, written);
                    returned += 1;
                }
                Completed::Again { unit, op } => {
                    request.kind = OperationKind::of(&op);
                    request.bytes = bytes_moved(&op, segments);
                    request.since_ns = now_ns;
                    self.in_flight.restore(tag, head);
                    self.engines.push(unit, Request { tag, op, segments });
                    segments.clear();
                }
            }
        }
        returned
    }

    /// Completes the queries that are done or cancelled. Returns their number. They are no I/O, so
    /// that statistics count them as requests answered without the medium.
    fn reap_queries(&mut self) -> u64 {
        let mut returned = 0;
        for tag in self.engines.take_answered() {
            let Some((head, request)) = self.in_flight.remove(tag) else { continue };
            let written = self.protocol.complete_query(&mut request.pending, self.queue.map());
            self.stats.count_answered();
            self.queue.push_used(head, written);
            returned += 1;
        }
        returned
    }

    /// Takes available chains while there are free slots, at most as many as the queue has entries:
    /// a driver that never stops offering must not starve completions.
    #[inline(never)]
    fn accept(&mut self, now_ns: u64) {
        for _ in 0..self.queue.size() {
            if self.broken || self.in_flight.is_full() {
                return;
            }
            match self.queue.pop(&mut self.chain) {
                Ok(Some(head)) => self.start(head, now_ns),
                Ok(None) => return,
                Err(error) => self.break_queue(error),
            }
        }
    }

    /// Starts the request of a chain. The table has a vacant slot.
    #[inline]
    fn start(&mut self, head: Head, now_ns: u64) {
        self.segments.clear();
        match self.protocol.parse(&self.chain, self.queue.map(), &mut self.segments) {
            Parsed::Io { unit, op, pending } => {
                let bytes = bytes_moved(&op, &self.segments);
                let kind = OperationKind::of(&op);
                let request = InFlightRequest { pending, kind, bytes, since_ns: now_ns };
                let Some(tag) = self.in_flight.insert(head, request) else { return };
                self.engines.push(unit, Request { tag, op, segments: &mut self.segments });
            }
            Parsed::Query { query, pending } => {
                // Kind and bytes of a query are not counted.
                let kind = OperationKind::Read;
                let request = InFlightRequest { pending, kind, bytes: 0, since_ns: now_ns };
                let Some(tag) = self.in_flight.insert(head, request) else { return };
                self.engines.query(tag, query);
            }
            Parsed::Done { written } => {
                self.stats.count_answered();
                self.queue.push_used(head, written);
            }
            Parsed::Fatal(error) => {
                self.queue.push_used(head, 0);
                self.break_queue(error);
            }
        }
    }

    /// Nanoseconds since the start of the worker's clock. Costs no system call.
    fn now_ns(&self) -> u64 {
        let elapsed = self.epoch.elapsed();
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    /// Stops taking chains from a malformed ring. Requests in flight complete as usual.
    #[cold]
    fn break_queue(&mut self, error: QueueError) {
        self.broken = true;
        self.faults.needs_reset(&error);
    }
}

impl<P: Protocol> Drop for QueueWorker<P> {
    /// Leaves the requests in flight to the reset, uncounted.
    fn drop(&mut self) {
        for head in self.abandon() {
            self.queue.abandon(head);
        }
        self.stats.set_in_flight(0);
    }
}

/// Bytes that an operation moves, discards or zeroes.
fn bytes_moved(op: &Operation, segments: &Segments) -> u64 {
    match op {
        Operation::Read { .. } | Operation::Write { .. } => match segments.as_slice() {
            [one] => one.len() as u64,
            several => several.iter().map(|segment| segment.len() as u64).sum(),
        },
        // The first half is only compared.
        Operation::CompareAndWrite { .. } => {
            segments.iter().map(|segment| segment.len() as u64).sum::<u64>() / 2
        }
        Operation::Flush => 0,
        Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => range.len,
    }
}

/// Guest memory as an engine may register it.
fn memory_regions(memory: &GuestMemory) -> Result<Vec<MemoryRegion>, StartError> {
    memory
        .iter()
        .map(|region| {
            let whole = region.as_volatile_slice().map_err(|error| StartError::Host {
                what: "access guest memory",
                source: io::Error::other(error),
            })?;
            Ok(MemoryRegion { base: whole.ptr_guard_mut().as_ptr(), len: whole.len() })
        })
        .collect()
}
