//! The contract between device models and the hypervisor: interrupts and doorbells.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A message signalled interrupt: a write of `data` to `address` (PCI 3.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Target of the write; selects the destination CPU.
    pub address: u64,
    /// Data of the write; selects the interrupt vector.
    pub data: u32,
}

/// One message signalled interrupt line of a device. Any thread may signal its event at any time;
/// the guest receives the interrupt while the line is unmasked. A signal of a masked line stays
/// pending in the event.
pub trait MsiLine: Send {
    /// The event that raises the interrupt, without a system call to the hypervisor's control
    /// plane.
    fn event(&self) -> &Arc<EventFd>;

    /// Routes the event to `message`.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses the route.
    fn unmask(&mut self, message: MsiMessage) -> io::Result<()>;

    /// Removes the route; signals stay pending in the event.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses to detach the event.
    fn mask(&mut self) -> io::Result<()>;
}

/// Services of the hypervisor for devices.
pub trait Hypervisor: Send + Sync {
    /// Allocates an interrupt line, masked.
    ///
    /// # Errors
    ///
    /// No interrupt number is left.
    fn msi_line(&self) -> io::Result<Box<dyn MsiLine>>;

    /// Makes a guest's write of any width to `address` signal `event` instead of exiting from the
    /// vCPU.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses, for example because the address is taken.
    fn attach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Reverts [`Hypervisor::attach_doorbell`] with the same address and event.
    ///
    /// # Errors
    ///
    /// The doorbell does not exist.
    fn detach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
