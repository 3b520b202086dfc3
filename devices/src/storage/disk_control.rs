//! Control of a disk while its guest runs, independent of the storage protocol. Called by the
//! control plane's threads; neither side waits for the other.

use std::io;
use std::sync::Arc;

use ::block::{Backend, Crossing, DiskStatus, Geometry, ResizeError};

use super::capacity::DriverCapacity;
use super::stats::QueueStats;

/// A disk as its device implements it.
pub(crate) trait ControlledDisk: Send + Sync {
    /// Name in the configuration.
    fn name(&self) -> &str;
    fn backend(&self) -> &dyn Backend;
    fn capacity(&self) -> &DriverCapacity;
    /// Whether the device reports a volatile write cache.
    fn write_cache(&self) -> bool;
    /// Statistics by queue.
    fn stats(&self) -> &[Arc<QueueStats>];
    /// Notifies the driver of a changed capacity.
    fn announce_capacity(&self);
    /// Notifies the driver that the soft limit is reached, if the protocol can.
    fn announce_soft_limit(&self) {}
    /// Called after each check of the soft limit.
    fn soft_limit_checked(&self) {}
}

/// Controls of one disk.
#[derive(Clone)]
pub struct DiskControl(Arc<dyn ControlledDisk>);

impl DiskControl {
    pub(crate) fn new(disk: Arc<dyn ControlledDisk>) -> Self {
        Self(disk)
    }

    /// Name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The disk's backend.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.0.backend()
    }

    /// The backend's current state.
    #[must_use]
    pub fn status(&self) -> DiskStatus {
        self.backend().status()
    }

    /// Geometry, with the capacity that the driver knows.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { capacity: self.0.capacity().bytes(), ..self.backend().geometry() }
    }

    /// Whether the device reports a volatile write cache. The driver may switch it.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.0.write_cache()
    }

    /// Statistics by queue. A reset does not clear them.
    #[must_use]
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        self.0.stats()
    }

    /// Measures the space of the backing store. Returns whether the soft limit was crossed since
    /// the last call and notifies the driver if it was reached. Blocks.
    ///
    /// # Errors
    ///
    /// The host does not report the space.
    pub fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        let crossing = self.backend().check_soft_limit()?;
        if crossing == Some(Crossing::Reached) {
            self.0.announce_soft_limit();
        }
        self.0.soft_limit_checked();
        Ok(crossing)
    }

    /// Grows the disk to `size` bytes, or without a size to that of its file or device, and
    /// notifies the driver. Returns the capacity in bytes. Blocks.
    ///
    /// # Errors
    ///
    /// See [`Backend::resize`]. The capacity is unchanged.
    pub fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let disk = &*self.0;
        disk.capacity().resize(disk.backend(), size, || disk.announce_capacity())
    }
}
