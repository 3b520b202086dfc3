//! The devices on the PCI bus, created from the configuration.

use std::io;
use std::sync::Arc;

use devices::pci::{BusFull, PciRoot, Window};
use devices::storage::DiskControl;
use devices::virtio::{Net, PciTransport, Rng, Tap, TapError, VirtioDevice};
use devices::{GuestMemory, Hypervisor};
use thiserror::Error;

use crate::config::{ControllerConfig, DiskBus, DiskConfig, MachineConfig, NetConfig};
use crate::disks::{DiskError, ScsiControllers, open_backend, open_virtio_blk};
use crate::layout::PCI_WINDOW;

/// The reason a device is not available.
#[derive(Debug, Error)]
pub(crate) enum PciError {
    /// A disk or its controller.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The TAP device cannot be opened.
    #[error("network device {0:?}")]
    Tap(String, #[source] TapError),
    /// The host or KVM is out of events or interrupts.
    #[error("cannot connect the device {0:?}")]
    Connect(String, #[source] io::Error),
    /// No slot is free.
    #[error(transparent)]
    Full(#[from] BusFull),
}

/// The PCI bus, and the parts of it that are used while the machine runs.
pub(super) struct PciDevices {
    pub(super) root: PciRoot,
    /// The disks' controls, in the order of the configuration.
    pub(super) disks: Vec<DiskControl>,
    pub(super) controllers: ScsiControllers,
}

/// Creates all devices. Their order decides the slots: disks and their controllers, controllers
/// without disks, network devices, entropy source.
///
/// # Errors
///
/// A device is not available.
pub(super) fn create_devices(
    config: &MachineConfig,
    memory: &GuestMemory,
    hypervisor: &Arc<dyn Hypervisor>,
) -> Result<PciDevices, PciError> {
    let mut bus = PciBus { root: PciRoot::new(window()), memory, hypervisor };
    let mut controllers = ScsiControllers::default();
    let mut disks = Vec::new();
    for disk in &config.disks {
        disks.push(bus.add_disk(disk, &config.controllers, &mut controllers)?);
    }
    for controller in &config.controllers {
        if let Some(scsi) = controllers.add(*controller)? {
            bus.add(scsi)?;
        }
    }
    config.nets.iter().try_for_each(|net| bus.add(open_net(net)?))?;
    bus.add(Box::new(Rng))?;
    Ok(PciDevices { root: bus.root, disks, controllers })
}

struct PciBus<'m> {
    root: PciRoot,
    memory: &'m GuestMemory,
    hypervisor: &'m Arc<dyn Hypervisor>,
}

impl PciBus<'_> {
    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), PciError> {
        let name = device.name().to_owned();
        let hypervisor = Arc::clone(self.hypervisor);
        let transport = PciTransport::new(device, self.memory.clone(), hypervisor)
            .map_err(|error| PciError::Connect(name, error))?;
        self.root.add(Box::new(transport))?;
        Ok(())
    }

    /// Adds a disk, and before it the controller of a SCSI disk.
    fn add_disk(
        &mut self,
        disk: &DiskConfig,
        configured: &[ControllerConfig],
        controllers: &mut ScsiControllers,
    ) -> Result<DiskControl, PciError> {
        match disk.bus {
            DiskBus::VirtioBlk => {
                let block = open_virtio_blk(disk)?;
                let control = block.control();
                self.add(Box::new(block))?;
                Ok(control)
            }
            DiskBus::VirtioScsi(address) => {
                let mut configured = configured.iter();
                let controller = configured.find(|scsi| scsi.number == address.controller);
                if let Some(controller) = controller
                    && let Some(scsi) = controllers.add(*controller)?
                {
                    self.add(scsi)?;
                }
                let backend = open_backend(disk)?;
                Ok(controllers.attach(disk, address, backend)?)
            }
        }
    }
}

fn window() -> Window {
    // The window lies below 4 GiB.
    let [base, end] = [PCI_WINDOW.start, PCI_WINDOW.end]
        .map(|address| u32::try_from(address).unwrap_or(u32::MAX));
    Window { base, len: end - base }
}

fn open_net(config: &NetConfig) -> Result<Box<dyn VirtioDevice>, PciError> {
    let tap = Tap::open(&config.tap).map_err(|error| PciError::Tap(config.tap.clone(), error))?;
    Ok(Box::new(Net::new(tap, config.mac)))
}
