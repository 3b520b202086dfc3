//! Device models: what a guest sees.
//!
//! [`pci`] is the bus and its configuration space, [`virtio`] the transport, the queues and the
//! devices on it, [`scsi`] a SCSI target for one of these, [`platform`] the few devices a PC has
//! outside PCI. Of the hypervisor this crate knows only the trait [`Hypervisor`]; it does not know KVM.

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

pub use guest_memory::GuestMap;
pub use hypervisor::{Hypervisor, MsiLine, MsiMessage};
pub use storage::WriteCache;

/// The guest's memory, as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
