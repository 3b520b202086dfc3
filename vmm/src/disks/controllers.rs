//! The SCSI controllers of a machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::Backend;
use devices::scsi::Identity;
use devices::storage::DiskControl;
use devices::virtio::{AttachError, Detached, Scsi, ScsiBus, VirtioDevice};

use super::error::DiskError;
use crate::config::{ControllerConfig, DiskConfig, ScsiAddress};

/// SCSI controllers, by number.
#[derive(Default)]
pub(crate) struct ScsiControllers(BTreeMap<u8, ScsiController>);

struct ScsiController {
    bus: ScsiBus,
    queues: u16,
}

impl ScsiControllers {
    /// Creates the device of a controller, unless it exists.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub(crate) fn add(
        &mut self,
        config: ControllerConfig,
    ) -> Result<Option<Box<dyn VirtioDevice>>, DiskError> {
        let ControllerConfig { number, queues } = config;
        if self.0.contains_key(&number) {
            return Ok(None);
        }
        let name = format!("scsi{number}");
        let scsi = Scsi::new(&name, queues).map_err(|error| DiskError::Controller(name, error))?;
        self.0.insert(number, ScsiController { bus: scsi.bus(), queues });
        Ok(Some(Box::new(scsi)))
    }

    /// The numbers of all controllers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> {
        self.0.keys().copied()
    }

    /// The request queues of a controller.
    pub(crate) fn queues(&self, number: u8) -> Option<u16> {
        self.0.get(&number).map(|controller| controller.queues)
    }

    /// Attaches an open disk.
    ///
    /// # Errors
    ///
    /// The address is taken or does not exist.
    pub(crate) fn attach(
        &self,
        disk: &DiskConfig,
        scsi: ScsiAddress,
        backend: Arc<dyn Backend>,
    ) -> Result<DiskControl, DiskError> {
        let failed = |error| DiskError::Attach(disk.id().to_owned(), error);
        let identity = Identity::new(&disk.serial, &canonical_path(disk));
        let controller = self.0.get(&scsi.controller).ok_or_else(|| failed(AttachError::Full))?;
        controller.bus.attach(scsi.address, disk.id(), identity, backend).map_err(failed)
    }

    /// Detaches the disk at an address, if there is one.
    pub(crate) fn detach(&self, scsi: ScsiAddress) -> Option<Detached> {
        self.0.get(&scsi.controller)?.bus.detach(scsi.address)
    }
}

/// Distinguishes disks with the same serial number in their SCSI identity.
fn canonical_path(disk: &DiskConfig) -> String {
    let file = disk.file();
    let path = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    path.display().to_string()
}
