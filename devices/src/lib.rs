//! Device models: the devices that a guest sees.
//!
//! [`pci`] is the bus and its configuration space, [`virtio`] the transports and the devices on
//! them, [`storage`] the parts that storage protocols share, [`scsi`] a SCSI target without a
//! transport, and [`platform`] the devices of a PC outside PCI. The crate accesses the hypervisor
//! through the trait [`Hypervisor`] only and does not know KVM.

#![deny(clippy::print_stdout)]

pub mod bus;
mod event;
mod guest_memory;
mod hypervisor;
mod interrupt;
pub mod pci;
pub mod platform;
pub mod scsi;
pub mod storage;
pub mod virtio;
mod virtqueue;
mod worker;

pub use guest_memory::{GuestMap, GuestMemory, isolate};
pub use hypervisor::{Hypervisor, MsiLine, MsiMessage};
