//! A guest driver in process, without KVM: enumerates the bus, negotiates features, lays out rings
//! and submits requests, well-formed or hostile.
//!
//! Bottom up: [`Machine`] (guest memory, PCI bus, a hypervisor of eventfds), [`Function`]
//! (registers of one PCI function), [`Device`] (negotiation), [`Ring`] (the driver's half of a
//! split virtqueue), [`Disk`] (virtio-blk requests), [`Initiator`] (SCSI commands and task
//! management). [`TestDisk`] is a backend that can pause, fail and record its requests.
//! [`vhost_user`] drives a back end in another process.
//!
//! Everything runs on the thread of its test, fails it by panicking, and never waits without a
//! bound.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test driver fails by panicking"
)]

mod arena;
mod device;
mod disk;
pub mod feature;
mod function;
mod hypervisor;
mod machine;
mod ring;
mod scsi;
pub mod status;
mod test_disk;
pub mod vhost_user;

pub use arena::Arena;
pub use device::Device;
pub use disk::{Data, Disk, Framing, Outcome, PendingRequest, Request, kind};
pub use function::{Function, Structure};
pub use hypervisor::{EventHypervisor, Line};
pub use machine::{HIGH_MEMORY, HOLE, LOW_BYTES, Machine, WINDOW};
pub use ring::{Descriptor, Ring, Used};
pub use scsi::{Command, Initiator, PendingCommand, Response, response};
pub use test_disk::{Shape, TestDisk};
