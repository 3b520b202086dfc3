//! One disk on a controller.

use std::sync::{Arc, Weak};

use ::block::{Backend, ResizeError};

use super::event_queue::Event;
use super::shared::{Address, Shared};
use crate::scsi::{Attention, LogicalUnit};
use crate::virtio::disk_control::ControlledDisk;
use crate::virtio::stats::QueueStats;

/// See the module's documentation.
pub(super) struct Disk {
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) address: Address,
    /// By request queue.
    pub(super) stats: Vec<Arc<QueueStats>>,
    pub(super) shared: Weak<Shared>,
}

impl ControlledDisk for Disk {
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
}
