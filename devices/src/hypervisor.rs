//! What a device model asks of the hypervisor: interrupts out and doorbells in.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A message signalled interrupt: a write of `data` to `address` (PCI 3.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the write goes; names the destination CPU.
    pub address: u64,
    /// What is written; names the interrupt vector.
    pub data: u32,
}

/// One message signalled interrupt of one device. Its event may be signalled at any time from any
/// thread; the guest sees it once the line is unmasked. Signals while masked stay pending in the event.
pub trait MsiLine: Send {
    /// Writing this event raises the interrupt, without a system call into the hypervisor's
    /// control plane.
    fn event(&self) -> &Arc<EventFd>;

    /// From now on the event raises `message`.
    ///
    /// # Errors
    ///
    /// When the hypervisor refuses the route.
    fn unmask(&mut self, message: MsiMessage) -> io::Result<()>;

    /// From now on the event only remembers that it was signalled.
    ///
    /// # Errors
    ///
    /// When the hypervisor refuses to detach the event.
    fn mask(&mut self) -> io::Result<()>;
}

/// What the hypervisor offers to devices.
pub trait Hypervisor: Send + Sync {
    /// A new interrupt line, masked.
    ///
    /// # Errors
    ///
    /// When no interrupt number is left.
    fn msi_line(&self) -> io::Result<Box<dyn MsiLine>>;

    /// From now on a guest's write of any width to `address` signals `event` in place of leaving
    /// the vCPU.
    ///
    /// # Errors
    ///
    /// When the hypervisor refuses, for one because the address is taken.
    fn attach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Hypervisor::attach_doorbell`] with the same address and event.
    ///
    /// # Errors
    ///
    /// When there was no such doorbell.
    fn detach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
