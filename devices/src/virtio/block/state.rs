//! State of a virtio-blk disk that the device, its workers and the control plane share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::block::{Backend, LogLimit};

use crate::storage::{ControlledDisk, DriverCapacity, QueueStats, WriteCache};
use crate::virtqueue::ConfigChange;

/// The shared state.
pub(super) struct BlockState {
    /// Name in the configuration.
    pub(super) name: Arc<str>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) capacity: DriverCapacity,
    pub(super) write_cache: WriteCache,
    /// Whether the driver may switch the write cache: it accepted CONFIG_WCE, and FLUSH to use it.
    pub(super) cache_switchable: AtomicBool,
    /// Whether the last switch to off failed to flush: `writeback` then reads 1, so that the driver
    /// flushes, whatever the durability of its writes.
    pub(super) needs_flush: AtomicBool,
    /// Bounds the log of failed switches.
    pub(super) cache_not_flushed: LogLimit,
    /// Statistics by queue.
    pub(super) stats: Vec<Arc<QueueStats>>,
    /// `None` until the device has a transport.
    change: Mutex<Option<ConfigChange>>,
}

impl BlockState {
    pub(super) fn new(name: &str, queues: u16, backend: Arc<dyn Backend>) -> Self {
        Self {
            name: name.into(),
            capacity: DriverCapacity::new(backend.geometry().capacity),
            write_cache: WriteCache::new(backend.cache_mode()),
            cache_switchable: AtomicBool::new(false),
            needs_flush: AtomicBool::new(false),
            cache_not_flushed: LogLimit::default(),
            backend,
            stats: (0..queues).map(|_| Arc::default()).collect(),
            change: Mutex::default(),
        }
    }

    /// Provides the means to notify the driver.
    pub(super) fn connect(&self, change: ConfigChange) {
        *self.change() = Some(change);
    }

    /// The `writeback` field.
    pub(super) fn writeback(&self) -> bool {
        self.write_cache.is_on() || self.needs_flush.load(Ordering::Acquire)
    }

    fn change(&self) -> MutexGuard<'_, Option<ConfigChange>> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControlledDisk for BlockState {
    fn name(&self) -> &str {
        &self.name
    }

    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn capacity(&self) -> &DriverCapacity {
        &self.capacity
    }

    fn write_cache(&self) -> bool {
        self.writeback()
    }

    fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// A configuration change notification (Virtio 1.2 §5.2.5).
    fn announce_capacity(&self) {
        if let Some(change) = &*self.change() {
            change.notify();
        }
    }
}
