//! A guest driver played in process, without KVM: it finds a device on the bus as a real driver does,
//! negotiates, lays out rings, and asks well-behaved or hostile things of it.
//!
//! From the bus to the request: [`Machine`] (memory, bus, a hypervisor that only keeps events),
//! [`Function`] (one device's registers), [`Device`] (negotiation), [`Ring`] (the driver's half of a
//! split virtqueue, every cell of it), [`Disk`] (virtio-blk requests in any framing), [`Host`] (the same for SCSI
//! commands and task management). [`MemoryDisk`] is
//! a backend that can be slow, fail, and tell what it was asked. All waits are bounded.
//!
//! Everything here runs on the thread of its test, and fails it by panicking.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a driver in a test fails by panicking"
)]

mod arena;
mod device;
mod disk;
mod function;
mod hypervisor;
mod machine;
mod memory_disk;
mod ring;
mod scsi;
pub mod vhost_user;

pub use fixtures::{PATIENCE, wait_for};

pub use arena::Arena;
pub use device::{Device, feature, status};
pub use disk::{Data, Disk, Framing, Outcome, Placed, Request, kind};
pub use function::{Function, Structure};
pub use hypervisor::{EventHypervisor, Line};
pub use machine::{HIGH_MEMORY, HOLE, LOW_BYTES, Machine, WINDOW};
pub use memory_disk::{MemoryDisk, Shape};
pub use ring::{Descriptor, Ring, Used};
pub use scsi::{Answer, Command, Host, Sent, response};
