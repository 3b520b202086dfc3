//! One ring of a vhost-user device: the frontend's configuration and the worker that serves it.
//!
//! A ring runs once it has a kick, addresses and a size, and is enabled. It may be stopped at any
//! time and resumes at the position that it reached.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::fault::Fault;
use super::frontend_event::FrontendEvent;
use super::inflight_memory::InflightMemory;
use super::memory_table::MemoryTable;
use crate::virtio::block::Block;
use crate::virtio::device::{Activation, VirtioDevice};
use crate::virtqueue::{
    ActiveQueue, DeviceStatus, FaultReporter, HandOver, Position, Queue, QueueLayout,
};
use crate::worker::Worker;

/// How often a stop is signalled: the kick belongs to the frontend, which may consume the signal.
const SIGNAL_PERIOD: Duration = Duration::from_millis(100);

/// Addresses of the parts of a ring in the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingAddresses {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// One ring.
pub(super) struct Ring {
    index: usize,
    /// Number of entries; 0 until it is configured.
    pub(super) size: u16,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) position: Position,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) enabled: bool,
    /// Notifies the guest's driver of used buffers.
    pub(super) call: FrontendEvent,
    /// Notifies the frontend of a broken ring.
    pub(super) error: FrontendEvent,
    running: Option<RunningRing>,
}

struct RunningRing {
    workers: Vec<Worker>,
    position: Receiver<Position>,
    fail_held: Arc<AtomicBool>,
}

/// The parts of the device that a ring needs to run.
pub(super) struct RingContext<'a> {
    pub(super) device: &'a mut Block,
    pub(super) table: &'a MemoryTable,
    pub(super) inflight: Option<&'a InflightMemory>,
    pub(super) features: u64,
}

impl Ring {
    /// A ring without configuration.
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub(super) fn new(index: usize) -> io::Result<Self> {
        Ok(Self {
            index,
            size: 0,
            addresses: None,
            position: Position::default(),
            kick: None,
            enabled: false,
            call: FrontendEvent::new()?,
            error: FrontendEvent::new()?,
            running: None,
        })
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether the ring must be started.
    pub(super) fn is_ready(&self) -> bool {
        self.kick.is_some() && self.enabled && !self.is_running()
    }

    /// Refuses a change that a running worker would not notice.
    ///
    /// # Errors
    ///
    /// The ring runs.
    pub(super) fn check_stopped(&self) -> Result<(), Fault> {
        let what = "it cannot be changed while it runs";
        if self.is_running() { Err(Fault::Order { ring: self.index, what }) } else { Ok(()) }
    }

    /// Starts the worker.
    ///
    /// # Errors
    ///
    /// The configuration is incomplete or invalid, or the host refuses a resource.
    pub(super) fn start(&mut self, context: RingContext<'_>) -> Result<(), Fault> {
        let RingContext { device, table, inflight, features } = context;
        let order = |what| Fault::Order { ring: self.index, what };
        let kick = self.kick.clone().ok_or_else(|| order("it has no kick"))?;
        let layout = self.layout(table)?;
        let record =
            inflight.map(|inflight| inflight.record(self.index, layout.size)).transpose()?;
        let position = self.position.clone();
        let queue = Queue::resume(table.memory(), layout, features, position, record.as_ref())
            .map_err(|source| Fault::Queue { ring: self.index, source })?;
        let (position, reached) = sync_channel(1);
        let fail_held = Arc::new(AtomicBool::new(false));
        let hand_over = HandOver { position, fail_held: Arc::clone(&fail_held) };
        let index = u16::try_from(self.index).unwrap_or(u16::MAX);
        let active = ActiveQueue::new(index, queue, kick, self.call.interrupt());
        let active = ActiveQueue { hand_over: Some(hand_over), ..active };
        let faults = FaultReporter::new(DeviceStatus::driver_ok(), self.error.interrupt());
        let workers = device.activate(Activation { features, queues: vec![active], faults })?;
        self.running = Some(RunningRing { workers, position: reached, fail_held });
        // An earlier back end may have been killed after the used index and before its interrupt.
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

    /// Stops the worker, if the ring runs, after it has returned the requests in flight. Requests
    /// held for ENOSPC fail with `fail_held`; otherwise the position owes them.
    pub(super) fn stop(&mut self, fail_held: bool) {
        let Some(running) = self.running.take() else { return };
        running.fail_held.store(fail_held, Ordering::Release);
        let reached = loop {
            // If the frontend filled the counter, a signal would fail. Its value has no meaning.
            let _ = self.kick.as_ref().map(|kick| kick.read());
            running.workers.iter().for_each(Worker::request_stop);
            match running.position.recv_timeout(SIGNAL_PERIOD) {
                Err(RecvTimeoutError::Timeout) => {}
                reached => break reached,
            }
        };
        match reached {
            Ok(position) => self.position = position,
            Err(_) => {
                let ring = self.index;
                tracing::error!(target: "vhost-user", ring, "the worker ended without a position");
            }
        }
    }
}
