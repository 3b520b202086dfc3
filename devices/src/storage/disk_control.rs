//! What the control plane may see and do of a disk while its guest runs, whatever protocol carries it.
//!
//! Nothing here waits for a worker, and no worker waits for anything here.

use std::io;
use std::sync::Arc;

use ::block::{Backend, Crossing, EngineChoice, Geometry, ResizeError};

use super::stats::QueueStats;

/// A disk as its device keeps it.
pub(crate) trait ControlledDisk: Send + Sync {
    fn name(&self) -> &str;
    fn backend(&self) -> &dyn Backend;
    /// Bytes that the driver knows of.
    fn capacity(&self) -> u64;
    fn write_cache(&self) -> bool;
    /// By queue.
    fn stats(&self) -> &[Arc<QueueStats>];
    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError>;
    /// Tells the driver that the disk's soft limit is reached, if its protocol has words for that.
    fn tell_soft_limit(&self) {}
    /// The space of the disk's store was looked at.
    fn space_was_seen(&self) {}
}

/// The controls of one disk.
#[derive(Clone)]
pub struct DiskControl(pub(crate) Arc<dyn ControlledDisk>);

impl DiskControl {
    /// The disk's name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What is behind it.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.0.backend()
    }

    /// The disk as its driver sees it.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { capacity: self.0.capacity(), ..self.backend().geometry() }
    }

    /// Which engine serves the queues, and why.
    #[must_use]
    pub fn engine(&self) -> EngineChoice {
        self.backend().status().engine
    }

    /// Whether the driver is told of a volatile write cache now. It may switch it.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.0.write_cache()
    }

    /// What the queues have done, by queue. Counts on through resets.
    #[must_use]
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        self.0.stats()
    }

    /// Looks whether the space of the disk's store has passed its soft limit since the last look, and tells the driver
    /// when it is reached. Blocks.
    ///
    /// # Errors
    ///
    /// The host refuses to say how much space there is.
    pub fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        let crossing = self.backend().check_soft_limit()?;
        if crossing == Some(Crossing::Reached) {
            self.0.tell_soft_limit();
        }
        self.0.space_was_seen();
        Ok(crossing)
    }

    /// Lets the disk grow to `size` bytes, or without one to what its file or device has become,
    /// and tells the driver. Returns the size, in bytes. Blocks.
    ///
    /// # Errors
    ///
    /// Why the disk has the size it had before.
    pub fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.0.resize(size)
    }
}
