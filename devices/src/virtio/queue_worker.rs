//! The loop between one queue and one engine, the same for every storage protocol.
//!
//! Runs on the queue's own thread. A round is: settle what the engine completed, accept what the driver
//! made available, publish both with at most one interrupt, and sleep in the engine until there
//! is more. Nothing in it allocates, locks or hashes per request. It must never end or block because
//! of what a driver wrote: a bad request gets its status, a corrupt ring asks for a reset and
//! leaves the thread waiting for it.

use std::io;
use std::sync::Arc;

use block::{
    Backend, Completion, EngineSetup, IoEngine, MemoryRegion, Operation, Request, Segments,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::in_flight::InFlight;
use super::queue::MAX_BUFFERS;
use super::worker::Stop;
use super::{
    ActivateError, ActiveQueue, Chain, FaultReporter, Head, Interrupt, Queue, QueueError, Worker,
};
use crate::{GuestMemory, event};

/// What a chain turned out to be.
#[derive(Debug)]
pub enum Parsed<P> {
    /// A request for the engine. Its segments were filled in.
    Io {
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

    /// Reads a request out of its chain, once, and checks it. Does no I/O. `segments` is empty
    /// and takes the request's data buffers.
    fn parse(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
        segments: &mut Segments,
    ) -> Parsed<Self::Pending>;

    /// Writes a request's outcome and returns the bytes written into its writable buffers.
    fn complete(
        &mut self,
        pending: Self::Pending,
        memory: &GuestMemory,
        result: io::Result<()>,
    ) -> u32;
}

/// Starts the worker of one queue on the given disk.
///
/// # Errors
///
/// When the host refuses the engine or the thread.
pub fn spawn<P: Protocol>(
    name: String,
    active: ActiveQueue,
    memory: GuestMemory,
    faults: FaultReporter,
    backend: Arc<dyn Backend>,
    protocol: P,
) -> Result<Worker, ActivateError> {
    let kick = Arc::clone(&active.kick);
    Worker::spawn(
        name,
        kick,
        move || QueueWorker::new(active, memory, faults, &*backend, protocol),
        |mut worker, stop| worker.run(stop),
    )
}

/// One queue, one engine, one protocol.
struct QueueWorker<P: Protocol> {
    // The engine is dropped first: it drains, and what is in flight points into `memory`.
    engine: Box<dyn IoEngine>,
    queue: Queue,
    protocol: P,
    in_flight: InFlight<P::Pending>,
    chain: Chain,
    interrupt: Interrupt,
    faults: FaultReporter,
    memory: GuestMemory,
    /// The ring is corrupt: nothing more is taken from it.
    broken: bool,
    /// Open as long as the engine watches it.
    _kick: Arc<EventFd>,
}

impl<P: Protocol> QueueWorker<P> {
    fn new(
        active: ActiveQueue,
        memory: GuestMemory,
        faults: FaultReporter,
        backend: &dyn Backend,
        protocol: P,
    ) -> Result<Self, ActivateError> {
        let depth = active.queue.size();
        let regions = memory_regions(&memory)?;
        let setup = EngineSetup { depth, memory: &regions, kick: event::as_fd(&active.kick) };
        let engine = backend.engine(&setup)?;
        Ok(Self {
            engine,
            in_flight: InFlight::new(depth),
            chain: Chain::with_capacity(MAX_BUFFERS.min(usize::from(depth))),
            queue: active.queue,
            protocol,
            interrupt: active.interrupt,
            faults,
            memory,
            broken: false,
            _kick: active.kick,
        })
    }

    /// Serves the queue until it is asked to end.
    fn run(&mut self, stop: &Stop) {
        self.queue.disarm_kick();
        while !stop.requested() {
            self.settle();
            self.accept();
            if self.queue.publish() {
                self.interrupt.signal();
            }
            if !self.may_sleep() {
                continue;
            }
            if let Err(error) = self.engine.wait() {
                self.faults.needs_reset(&format_args!("its engine failed: {error}"));
                return;
            }
            self.queue.disarm_kick();
        }
    }

    /// Gives back to the driver what the engine completed.
    fn settle(&mut self) {
        while let Some(Completion { tag, result, segments }) = self.engine.reap() {
            self.in_flight.return_segments(segments);
            let Some((head, pending)) = self.in_flight.remove(tag) else {
                tracing::error!(target: "virtio", "the engine completed tag {tag} twice");
                continue;
            };
            let written = self.protocol.complete(pending, &self.memory, result);
            self.queue.push_used(head, written);
        }
    }

    /// Takes what the driver made available, as far as there are free slots.
    fn accept(&mut self) {
        while !self.broken && !self.in_flight.is_full() {
            match self.queue.pop(&mut self.chain) {
                Ok(Some(head)) => self.start(head),
                Ok(None) => return,
                Err(error) => self.give_up(error),
            }
        }
    }

    /// Starts one request.
    fn start(&mut self, head: Head) {
        let mut segments = self.in_flight.lend_segments();
        match self.protocol.parse(&self.chain, &self.memory, &mut segments) {
            Parsed::Io { op, pending } => match self.in_flight.insert(head, pending) {
                Ok(tag) => self.engine.push(Request { tag, op, segments }),
                Err(_) => unreachable!("accept checks for a free slot"),
            },
            Parsed::Done { written } => {
                self.in_flight.return_segments(segments);
                self.queue.push_used(head, written);
            }
            Parsed::Fatal(error) => {
                self.in_flight.return_segments(segments);
                self.queue.push_used(head, 0);
                self.give_up(error);
            }
        }
    }

    /// The ring cannot be trusted any more; what is in flight still completes.
    fn give_up(&mut self, error: QueueError) {
        self.broken = true;
        self.faults.needs_reset(&error);
    }

    /// Whether there is nothing to do before the next kick or completion.
    fn may_sleep(&mut self) -> bool {
        self.broken || self.in_flight.is_full() || self.queue.arm_kick()
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
