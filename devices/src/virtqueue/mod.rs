//! The split virtqueue (Virtio 1.2 §2.7) and the registers through which a worker reports to its
//! driver. Below both `storage` and `virtio`, which use it.

mod active;
mod chain;
mod device_status;
mod error;
mod head;
mod inflight_record;
mod queue;
mod resumed;
mod ring_memory;
mod span;
#[cfg(test)]
mod tests;
mod walk;

/// Feature bits of the ring and the transport (Virtio 1.2 §6).
pub(crate) mod feature {
    /// A descriptor may point to a table of descriptors.
    pub(crate) const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by index rather than by flag.
    pub(crate) const RING_EVENT_IDX: u64 = 1 << 29;
    /// The device follows Virtio 1.0 or later. Required of every driver.
    pub(crate) const VERSION_1: u64 = 1 << 32;
}

pub use active::{ActiveQueue, HandOver};
pub use chain::{Chain, FastParts};
pub(crate) use device_status::status;
pub use device_status::{ConfigChange, DeviceStatus, FaultReporter};
pub use error::QueueError;
pub use head::Head;
pub use inflight_record::{Position, RecordError, RecordRegion};
pub use queue::{Queue, QueueLayout};
pub use span::{Buffer, OutOfMemoryRange, Span};
