//! One disk on a controller: what the queues have of it, and what the control plane has.
//!
//! The two have nothing in common but the unit and the counters, so that each can be waited for: the queues let go of
//! a disk that is detached when nothing of it is in flight, and its file closes when the control plane has let go as well.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use ::block::{Backend, ResizeError};

use super::event_queue::Event;
use super::shared::{Address, Shared};
use crate::scsi::{Attention, Identity, LogicalUnit};
use crate::storage::disk_control::ControlledDisk;
use crate::storage::stats::QueueStats;

/// A disk as the queues have it. Whoever may bring it a request or serves it holds one.
pub(super) struct Disk {
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) address: Address,
    /// By request queue.
    pub(super) stats: Vec<Arc<QueueStats>>,
    // Dropped last, when nothing above is held any more.
    _in_use: Sender<Infallible>,
}

/// A disk as the control plane has it.
pub(super) struct Handle {
    unit: Arc<LogicalUnit>,
    address: Address,
    stats: Vec<Arc<QueueStats>>,
    shared: Weak<Shared>,
    // Dropped last.
    _open: Sender<Infallible>,
}

/// How to wait for the end of a disk.
pub(super) struct Exit {
    in_use: Receiver<Infallible>,
    open: Receiver<Infallible>,
}

impl Exit {
    /// Waits until no queue has the disk.
    pub(super) fn wait_until_left(&self) {
        // Nothing is ever sent.
        let _ = self.in_use.recv();
    }

    /// Waits until nobody has it.
    pub(super) fn wait_until_closed(&self) {
        let _ = self.in_use.recv();
        let _ = self.open.recv();
    }
}

/// A disk for the queues and the control plane of a controller.
pub(super) fn new(
    shared: &Arc<Shared>,
    address: Address,
    name: &str,
    identity: Identity,
    backend: Arc<dyn Backend>,
) -> (Arc<Disk>, Arc<Handle>, Exit) {
    let unit = Arc::new(LogicalUnit::new(name, identity, backend));
    let stats: Vec<Arc<QueueStats>> = shared.mailboxes.iter().map(|_| Arc::default()).collect();
    let ((_in_use, in_use), (_open, open)) = (channel(), channel());
    let disk = Disk { unit: Arc::clone(&unit), address, stats: stats.clone(), _in_use };
    let handle = Handle { unit, address, stats, shared: Arc::downgrade(shared), _open };
    (Arc::new(disk), Arc::new(handle), Exit { in_use, open })
}

impl ControlledDisk for Handle {
    fn name(&self) -> &str {
        self.unit.name()
    }

    fn backend(&self) -> &dyn Backend {
        &**self.unit.backend()
    }

    fn capacity(&self) -> u64 {
        self.unit.capacity()
    }

    fn write_cache(&self) -> bool {
        self.unit.write_cache().is_on()
    }

    fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// The driver is told by a unit attention condition and by an event (Virtio 1.2 §5.6.6.3).
    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let size = self.backend().resize(size)?;
        if self.unit.set_capacity(size)
            && let Some(shared) = self.shared.upgrade()
        {
            shared.events.raise(Event::changed(self.address, Attention::CapacityChanged));
        }
        Ok(size)
    }

    fn tell_soft_limit(&self) {
        self.unit.raise(Attention::SoftThreshold);
    }

    fn space_was_seen(&self) {
        self.unit.check_threshold();
    }
}
