//! Virtio 1.2 devices and their transports.
//!
//! A device implements [`VirtioDevice`] and starts the workers of its queues once the driver is
//! ready. [`PciTransport`] owns the driver's configuration; [`vhost_user`] serves the rings of
//! another monitor. Storage devices run [`QueueWorker`](crate::storage::QueueWorker), other devices
//! answer their chains in place (`chain_worker.rs`).

pub mod block;
mod chain_worker;
mod device;
mod net;
mod rng;
mod scsi;
mod transport;
pub mod vhost_user;

pub use block::Block;
pub use device::{Activation, DeviceType, VirtioDevice};
pub use net::{Net, Tap, TapError};
pub use rng::Rng;
pub use scsi::{Address, AttachError, Detached, Scsi, ScsiBus, Sleep};
pub use transport::PciTransport;

pub use crate::guest_memory::GuestMap;
pub use crate::interrupt::Interrupt;
pub use crate::virtqueue::{
    ActiveQueue, Buffer, Chain, ConfigChange, DeviceStatus, FastParts, FaultReporter, HandOver,
    Head, OutOfMemoryRange, Position, Queue, QueueError, QueueLayout, RecordError, RecordRegion,
    Span,
};
pub use crate::worker::{StartError, Stop, Worker};
