//! The PCI bus: configuration space, BARs, MSI-X, and the root that routes accesses of vCPUs.
//!
//! One bus with 32 slots of one function each. Configuration mechanism #1 through the ports 0xCF8
//! and 0xCFC (PCI 3.0 §3.2.2.3.2).

mod config_space;
mod msix;
mod root;

pub use config_space::{CapabilityId, ConfigSpace, FunctionIds};
pub use msix::Msix;
pub use root::{BusFull, PciRoot, SLOTS, Window};

/// A function on the bus with at most one memory BAR. One vCPU thread at a time accesses it.
pub trait PciDevice: Send {
    /// The device's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Reads configuration space at `offset`, within one aligned dword.
    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes configuration space at `offset`, within one aligned dword.
    fn config_write(&mut self, offset: u8, data: &[u8]);

    /// Sets the BAR and enables memory decoding, as firmware does before the guest starts.
    fn place_bar(&mut self, base: u32);

    /// Reads from the BAR.
    fn bar_read(&mut self, offset: u32, data: &mut [u8]);

    /// Writes to the BAR.
    fn bar_write(&mut self, offset: u32, data: &[u8]);

    /// Stops the device and makes its data durable.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    fn close(&mut self) -> std::io::Result<()>;
}
