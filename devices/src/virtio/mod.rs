//! Virtio 1.2: the split virtqueue, the PCI transport, and the devices on it.
//!
//! A device ([`VirtioDevice`]) says what it is and, once the driver is ready, starts its workers.
//! The transport ([`PciTransport`]) owns everything the driver configures; a [`Queue`] is the ring;
//! a [`Worker`] is the thread that serves one queue. Storage devices share one loop over queue and
//! engine, [`queue_worker`], and differ in their [`queue_worker::Protocol`].

pub mod block;
mod chain_worker;
mod device;
mod net;
mod rng;
mod scsi;
mod transport;
pub mod vhost_user;

pub use block::Block;
pub use device::{ActivateError, Activation, ActiveQueue, DeviceType, HandOver, VirtioDevice};
pub use net::{Net, Tap, TapError};
pub use rng::Rng;
pub use scsi::{Address, Leaving, NoPlace, Scsi, ScsiBus};
pub use transport::PciTransport;
pub(crate) use transport::status;

pub use crate::guest_memory::GuestMap;
pub use crate::interrupt::{ConfigChange, FaultReporter, Interrupt};
pub use crate::storage::{DiskControl, queue_worker, stats};
pub use crate::virtqueue::{
    Buffer, Chain, Framed, Head, OutOfMemoryRange, Position, Queue, QueueError, QueueLayout,
    RecordError, RecordPlace, Span,
};
pub use crate::worker::{Stop, Worker};

/// Feature bits that belong to the transport and the ring (Virtio 1.2 §6).
pub mod feature {
    /// A descriptor may point to a table of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by index rather than by flag.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// The device follows Virtio 1.0 or later. Not optional here.
    pub const VERSION_1: u64 = 1 << 32;
}
