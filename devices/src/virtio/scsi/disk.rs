//! A disk on a controller: the queues' reference and the control plane's reference.
//!
//! The two share only the unit and the statistics, so that a detach can wait for the last drop of
//! each: the queues release a detached disk when none of its requests is in flight, and its file
//! closes when the control plane has released it as well.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use ::block::Backend;

use super::address::Address;
use super::event_queue::{Event, Events};
use crate::scsi::{Attention, Identity, LogicalUnit};
use crate::storage::{ControlledDisk, DriverCapacity, QueueStats};

/// The queues' reference to a disk. Each queue that may start a request for it holds one.
pub(super) struct AttachedDisk {
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) address: Address,
    /// Statistics by request queue.
    pub(super) stats: Vec<Arc<QueueStats>>,
    // Dropped last, after the fields above.
    _in_use: Sender<Infallible>,
}

/// The control plane's reference to a disk.
pub(super) struct DiskHandle {
    unit: Arc<LogicalUnit>,
    address: Address,
    stats: Vec<Arc<QueueStats>>,
    events: Arc<Events>,
    // Dropped last.
    _open: Sender<Infallible>,
}

/// Waits for the last drop of each reference.
pub(super) struct ReleaseWatch {
    in_use: Receiver<Infallible>,
    open: Receiver<Infallible>,
}

impl ReleaseWatch {
    /// Waits until no queue has a reference.
    pub(super) fn wait_for_queues(&self) {
        // Returns when the sender is dropped: a message cannot exist.
        let _ = self.in_use.recv();
    }

    /// Waits until no reference exists.
    pub(super) fn wait_for_all(&self) {
        let _ = self.in_use.recv();
        let _ = self.open.recv();
    }
}

/// References to a new disk of a controller with `queues` request queues.
pub(super) fn new(
    (address, name): (Address, &str),
    identity: Identity,
    backend: Arc<dyn Backend>,
    queues: usize,
    events: Arc<Events>,
) -> (Arc<AttachedDisk>, Arc<DiskHandle>, ReleaseWatch) {
    let unit = Arc::new(LogicalUnit::new(name, identity, backend));
    let stats: Vec<Arc<QueueStats>> = (0..queues).map(|_| Arc::default()).collect();
    let ((_in_use, in_use), (_open, open)) = (channel(), channel());
    let disk = AttachedDisk { unit: Arc::clone(&unit), address, stats: stats.clone(), _in_use };
    let handle = DiskHandle { unit, address, stats, events, _open };
    (Arc::new(disk), Arc::new(handle), ReleaseWatch { in_use, open })
}

impl ControlledDisk for DiskHandle {
    fn name(&self) -> &str {
        self.unit.name()
    }

    fn backend(&self) -> &dyn Backend {
        &**self.unit.backend()
    }

    fn capacity(&self) -> &DriverCapacity {
        self.unit.driver_capacity()
    }

    fn write_cache(&self) -> bool {
        self.unit.write_cache().may_hold_data()
    }

    fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// A unit attention condition and an event (Virtio 1.2 §5.6.6.3).
    fn announce_capacity(&self) {
        self.unit.raise(Attention::CapacityChanged);
        self.events.raise(Event::changed(self.address, Attention::CapacityChanged));
    }

    fn announce_soft_limit(&self) {
        self.unit.raise(Attention::SoftThreshold);
    }

    fn soft_limit_checked(&self) {
        self.unit.measure_space();
        self.unit.check_threshold();
    }
}
