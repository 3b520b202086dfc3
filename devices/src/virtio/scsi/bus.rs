//! Hotplug of disks, before the guest starts and while it runs.

use std::sync::Arc;

use ::block::Backend;

use super::address::Address;
use super::controller::{Controller, Detached};
use super::disk_map::AttachError;
use crate::scsi::Identity;
use crate::storage::DiskControl;

/// Attaches disks to a controller and detaches them.
#[derive(Clone)]
pub struct ScsiBus(pub(super) Arc<Controller>);

impl ScsiBus {
    /// Attaches a disk called `name` and notifies the driver. Returns the controls of the disk.
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub fn attach(
        &self,
        address: Address,
        name: &str,
        identity: Identity,
        backend: Arc<dyn Backend>,
    ) -> Result<DiskControl, AttachError> {
        let handle = self.0.attach(address, name, identity, backend)?;
        Ok(DiskControl::new(handle))
    }

    /// Detaches the disk at an address and notifies the driver; `None` if the address has no disk.
    /// New commands do not find the unit. Commands in flight complete as usual, except that they
    /// are no longer held for ENOSPC.
    #[must_use]
    pub fn detach(&self, address: Address) -> Option<Detached> {
        self.0.detach(address)
    }
}
