//! Devices on the PCI bus, made as the configuration says.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use block::{Backend, DiskOptions, OpenError, RawFile};
use devices::pci::{BusFull, PciRoot, Window};
use devices::scsi::Identity;
use devices::virtio::{
    Block, DiskControl, Leaving, Net, NoPlace, PciTransport, Rng, Scsi, ScsiBus, Tap, TapError,
    VirtioDevice,
};
use devices::{GuestMemory, Hypervisor};
use thiserror::Error;

use crate::config::{Bus, ControllerConfig, DiskConfig, MachineConfig, NetConfig, ScsiPlace};
use crate::layout::PCI_WINDOW;

/// Why a device cannot be had.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The disk cannot be opened.
    #[error("disk {0:?}")]
    Disk(String, #[source] OpenError),
    /// The disk cannot be attached to its controller.
    #[error("disk {0:?}")]
    Place(String, #[source] NoPlace),
    /// The tap device cannot be opened.
    #[error("network device {0:?}")]
    Tap(String, #[source] TapError),
    /// The host or KVM gives no event or interrupt.
    #[error("cannot connect the device {0:?}")]
    Connect(String, #[source] io::Error),
    /// There are too many.
    #[error(transparent)]
    Full(#[from] BusFull),
}

/// The PCI bus, and what is asked of it while the machine runs.
pub(crate) struct Wired {
    pub(crate) root: PciRoot,
    /// The controls of the disks, in the order of the configuration.
    pub(crate) disks: Vec<DiskControl>,
    pub(crate) controllers: Controllers,
}

/// The PCI bus with all devices: disks, controllers without any, and network devices in the order of the configuration,
/// then the entropy source.
///
/// # Errors
///
/// When a device cannot be had.
pub(crate) fn bus(
    config: &MachineConfig,
    memory: &GuestMemory,
    hypervisor: &Arc<dyn Hypervisor>,
) -> Result<Wired, Error> {
    let mut root = PciRoot::new(window());
    let mut add = |device: Box<dyn VirtioDevice>| {
        let name = device.name().to_owned();
        let transport = PciTransport::new(device, memory.clone(), Arc::clone(hypervisor))
            .map_err(|error| Error::Connect(name, error))?;
        root.add(Box::new(transport))?;
        Ok::<_, Error>(())
    };
    let mut controllers = Controllers::default();
    let mut disks = Vec::new();
    for disk in &config.disks {
        disks.push(match disk.bus {
            Bus::VirtioBlk => {
                let block = open_block(disk)?;
                let control = block.control();
                add(Box::new(block))?;
                control
            }
            Bus::VirtioScsi(place) => {
                let of_it = |scsi: &&ControllerConfig| scsi.number == place.controller;
                let controller = config.controllers.iter().find(of_it);
                controller
                    .map_or(Ok(None), |scsi| controllers.add(*scsi))?
                    .map_or(Ok(()), &mut add)?;
                controllers.attach(disk, place)?
            }
        });
    }
    for controller in &config.controllers {
        controllers.add(*controller)?.map_or(Ok(()), &mut add)?;
    }
    config.nets.iter().try_for_each(|net| add(open_net(net)?))?;
    add(Box::new(Rng))?;
    Ok(Wired { root, disks, controllers })
}

/// The window lies below 4 GiB.
fn window() -> Window {
    let [base, end] = [PCI_WINDOW.start, PCI_WINDOW.end]
        .map(|address| u32::try_from(address).unwrap_or(u32::MAX));
    Window { base, len: end - base }
}

/// SCSI controllers, by their numbers.
#[derive(Default)]
pub(crate) struct Controllers(BTreeMap<u8, Controller>);

struct Controller {
    bus: ScsiBus,
    queues: u16,
}

impl Controllers {
    /// The device of a controller, if it was not there yet.
    ///
    /// # Errors
    ///
    /// The host gives no event.
    pub(crate) fn add(
        &mut self,
        config: ControllerConfig,
    ) -> Result<Option<Box<dyn VirtioDevice>>, Error> {
        let ControllerConfig { number, queues } = config;
        if self.0.contains_key(&number) {
            return Ok(None);
        }
        let name = format!("scsi{number}");
        let scsi = Scsi::new(&name, queues).map_err(|error| Error::Connect(name, error))?;
        self.0.insert(number, Controller { bus: scsi.bus(), queues });
        Ok(Some(Box::new(scsi)))
    }

    /// Their numbers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> {
        self.0.keys().copied()
    }

    /// The request queues of a controller.
    pub(crate) fn queues(&self, number: u8) -> Option<u16> {
        self.0.get(&number).map(|controller| controller.queues)
    }

    /// Opens a disk and attaches it to its controller.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or not be attached there. Nothing of it is left open.
    pub(crate) fn attach(&self, disk: &DiskConfig, place: ScsiPlace) -> Result<DiskControl, Error> {
        self.put(disk, place, Arc::new(open_backend(disk)?))
    }

    /// Attaches a disk that is open.
    ///
    /// # Errors
    ///
    /// It cannot be attached there.
    pub(crate) fn put(
        &self,
        disk: &DiskConfig,
        place: ScsiPlace,
        backend: Arc<dyn Backend>,
    ) -> Result<DiskControl, Error> {
        let no_place = |error| Error::Place(disk.id.clone(), error);
        let identity = Identity::new(&disk.serial, &place_of_data(disk));
        let controller =
            self.0.get(&place.controller).ok_or_else(|| no_place(NoPlace::Exhausted))?;
        controller.bus.attach(place.address, &disk.id, identity, backend).map_err(no_place)
    }

    /// Detaches the disk of a place, if there is one.
    pub(crate) fn detach(&self, place: ScsiPlace) -> Option<Leaving> {
        self.0.get(&place.controller)?.bus.detach(place.address)
    }
}

/// What tells a disk from another one with the same serial number: where its data is, by its full name.
fn place_of_data(disk: &DiskConfig) -> String {
    let path = std::fs::canonicalize(&disk.path).unwrap_or_else(|_| disk.path.clone());
    path.display().to_string()
}

/// The disk as a virtio-blk device.
///
/// # Errors
///
/// When it cannot be opened.
pub(crate) fn open_block(config: &DiskConfig) -> Result<Block, Error> {
    let backend = open_backend(config)?;
    Ok(Block::new(&config.id, &config.serial, config.queues, Arc::new(backend)))
}

fn open_backend(config: &DiskConfig) -> Result<RawFile, Error> {
    let options = DiskOptions {
        id: config.id.clone(),
        read_only: config.readonly,
        block_size: config.block_size,
        engine: config.engine,
        on_enospc: config.on_enospc,
        soft_limit: config.soft_limit,
        discard: config.discard,
        detect_zeroes: config.detect_zeroes,
        ..DiskOptions::new(config.cache)
    };
    RawFile::open(&config.path, &options).map_err(|error| Error::Disk(config.id.clone(), error))
}

fn open_net(config: &NetConfig) -> Result<Box<dyn VirtioDevice>, Error> {
    let tap = Tap::open(&config.tap).map_err(|error| Error::Tap(config.tap.clone(), error))?;
    Ok(Box::new(Net::new(tap, config.mac)))
}
