//! One ring of a vhost-user device: what the frontend told of it, and the worker that serves it.
//!
//! It runs once it has a kick, addresses and a size, and is enabled. It may be stopped at any time and goes on where it
//! stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Fault;
use super::inflight::Inflight;
use super::line::Line;
use super::memory::MemoryTable;
use crate::virtio::transport::status;
use crate::virtio::{
    Activation, ActiveQueue, Block, FaultReporter, HandOver, Position, Queue, QueueLayout,
    VirtioDevice, Worker,
};

/// The kick is the frontend's, which may take a signal of ours for itself: so it is repeated.
const SIGNAL_AGAIN: Duration = Duration::from_millis(100);

/// Where the parts of a ring are, as addresses of the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// See the module's documentation.
pub(super) struct Ring {
    index: usize,
    pub(super) size: u16,
    pub(super) addresses: Option<Addresses>,
    pub(super) position: Position,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) enabled: bool,
    /// Tells the guest's driver of used buffers.
    pub(super) call: Line,
    /// Tells the frontend that the ring is broken.
    pub(super) error: Line,
    running: Option<Running>,
}

struct Running {
    workers: Vec<Worker>,
    position: Receiver<Position>,
    report_held: Arc<AtomicBool>,
}

/// What a ring needs to run.
pub(super) struct Surroundings<'a> {
    pub(super) device: &'a mut Block,
    pub(super) table: &'a MemoryTable,
    pub(super) inflight: Option<&'a Inflight>,
    pub(super) features: u64,
}

impl Ring {
    /// A ring of which nothing is known.
    ///
    /// # Errors
    ///
    /// The host gives no event.
    pub(super) fn new(index: usize) -> io::Result<Self> {
        Ok(Self {
            index,
            size: 0,
            addresses: None,
            position: Position::default(),
            kick: None,
            enabled: false,
            call: Line::new()?,
            error: Line::new()?,
            running: None,
        })
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it should run and does not.
    pub(super) fn is_ready(&self) -> bool {
        self.kick.is_some() && self.enabled && !self.is_running()
    }

    /// Refuses what must not change under a worker.
    ///
    /// # Errors
    ///
    /// There is one.
    pub(super) fn check_stopped(&self) -> Result<(), Fault> {
        let what = "it cannot be changed while it runs";
        if self.is_running() { Err(Fault::Order { ring: self.index, what }) } else { Ok(()) }
    }

    /// Starts the worker.
    ///
    /// # Errors
    ///
    /// What the frontend told of the ring cannot be, or the host refuses.
    pub(super) fn start(&mut self, surroundings: Surroundings<'_>) -> Result<(), Fault> {
        let Surroundings { device, table, inflight, features } = surroundings;
        let order = |what| Fault::Order { ring: self.index, what };
        let kick = self.kick.clone().ok_or_else(|| order("it has no kick"))?;
        let layout = self.layout(table)?;
        let record =
            inflight.map(|inflight| inflight.record(self.index, layout.size)).transpose()?;
        let position = self.position.clone();
        let queue = Queue::resume(table.memory(), layout, features, position, record.as_ref())
            .map_err(|source| Fault::Queue { ring: self.index, source })?;
        let (position, reached) = sync_channel(1);
        let report_held = Arc::new(AtomicBool::new(false));
        let active = ActiveQueue {
            index: u16::try_from(self.index).unwrap_or(u16::MAX),
            queue,
            kick,
            interrupt: self.call.interrupt(),
            hand_over: Some(HandOver { position, report_held: Arc::clone(&report_held) }),
        };
        let ready = Arc::new(AtomicU8::new(status::DRIVER_OK));
        let faults = FaultReporter::new(ready, Arc::default(), self.error.interrupt());
        let activation = Activation { features, queues: vec![active], faults };
        let workers = device.activate(activation)?;
        self.running = Some(Running { workers, position: reached, report_held });
        // An earlier back end may have been killed between the used index and the interrupt for it.
        self.call.interrupt().signal();
        Ok(())
    }

    fn layout(&self, table: &MemoryTable) -> Result<QueueLayout, Fault> {
        let order = |what| Fault::Order { ring: self.index, what };
        let addresses = self.addresses.ok_or_else(|| order("it has no addresses"))?;
        if self.size == 0 {
            return Err(order("it has no size"));
        }
        Ok(QueueLayout {
            size: self.size,
            descriptors: table.guest_address(addresses.descriptors)?,
            available: table.guest_address(addresses.available)?,
            used: table.guest_address(addresses.used)?,
        })
    }

    /// Stops the worker, if there is one, once what is in flight has been given back. Requests that wait for space on the
    /// host are owed, or reported as failed where `report_held`.
    pub(super) fn stop(&mut self, report_held: bool) {
        let Some(running) = self.running.take() else { return };
        running.report_held.store(report_held, Ordering::Release);
        let reached = loop {
            // A frontend may have filled it, and then no signal of ours would be one. What it means is moot.
            let _ = self.kick.as_ref().map(|kick| kick.read());
            running.workers.iter().for_each(Worker::request_stop);
            match running.position.recv_timeout(SIGNAL_AGAIN) {
                Err(RecvTimeoutError::Timeout) => {}
                reached => break reached,
            }
        };
        match reached {
            Ok(position) => self.position = position,
            Err(_) => {
                tracing::error!(target: "vhost-user", ring = self.index, "its worker is lost");
            }
        }
    }
}
