//! Devices on the PCI bus, made as the configuration says.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use block::{DiskOptions, OpenError, RawFile};
use devices::pci::{BusFull, PciRoot, Window};
use devices::scsi::Identity;
use devices::virtio::{
    Block, DiskControl, Net, NoPlace, PciTransport, Rng, Scsi, ScsiBus, Tap, TapError, VirtioDevice,
};
use devices::{GuestMemory, Hypervisor};
use thiserror::Error;

use crate::config::{Bus, DiskConfig, MachineConfig, NetConfig, ScsiPlace};
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

/// The PCI bus with all devices: disks and network devices in the order of the configuration, then
/// the entropy source. With it the controls of the disks, in the same order.
///
/// # Errors
///
/// When a device cannot be had.
pub(crate) fn bus(
    config: &MachineConfig,
    memory: &GuestMemory,
    hypervisor: &Arc<dyn Hypervisor>,
) -> Result<(PciRoot, Vec<DiskControl>), Error> {
    let mut root = PciRoot::new(window());
    let mut add = |device: Box<dyn VirtioDevice>| {
        let name = device.name().to_owned();
        let transport = PciTransport::new(device, memory.clone(), Arc::clone(hypervisor))
            .map_err(|error| Error::Connect(name, error))?;
        root.add(Box::new(transport))?;
        Ok::<_, Error>(())
    };
    let mut scsi = Controllers::default();
    let mut controls = Vec::new();
    for disk in &config.disks {
        controls.push(match disk.bus {
            Bus::VirtioBlk => {
                let block = open_block(disk)?;
                let control = block.control();
                add(Box::new(block))?;
                control
            }
            Bus::VirtioScsi(place) => {
                if let Some(controller) = scsi.controller(place.controller, config)? {
                    add(controller)?;
                }
                scsi.attach(disk, place)?
            }
        });
    }
    config.nets.iter().try_for_each(|net| add(open_net(net)?))?;
    add(Box::new(Rng))?;
    Ok((root, controls))
}

/// The window lies below 4 GiB.
fn window() -> Window {
    let [base, end] = [PCI_WINDOW.start, PCI_WINDOW.end]
        .map(|address| u32::try_from(address).unwrap_or(u32::MAX));
    Window { base, len: end - base }
}

/// SCSI controllers, by their numbers; each is made with its first disk.
#[derive(Default)]
struct Controllers(BTreeMap<u8, ScsiBus>);

impl Controllers {
    /// The controller, if it was not there yet. It has as many queues as the one of its disks that wants the most.
    fn controller(
        &mut self,
        number: u8,
        config: &MachineConfig,
    ) -> Result<Option<Box<dyn VirtioDevice>>, Error> {
        if self.0.contains_key(&number) {
            return Ok(None);
        }
        let on_it = |disk: &&DiskConfig| matches!(disk.bus, Bus::VirtioScsi(place) if place.controller == number);
        let queues = config.disks.iter().filter(on_it).map(|disk| disk.queues).max();
        let name = format!("scsi{number}");
        let scsi = Scsi::new(&name, queues.unwrap_or(1)).map_err(|e| Error::Connect(name, e))?;
        self.0.insert(number, scsi.bus());
        Ok(Some(Box::new(scsi)))
    }

    fn attach(&self, disk: &DiskConfig, place: ScsiPlace) -> Result<DiskControl, Error> {
        let no_place = |error| Error::Place(disk.id.clone(), error);
        let backend = open_backend(disk)?;
        let identity = Identity::new(&disk.serial, &place_of_data(disk));
        let bus = self.0.get(&place.controller).ok_or_else(|| no_place(NoPlace::Exhausted))?;
        bus.attach(place.address, &disk.id, identity, Arc::new(backend)).map_err(no_place)
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
        on_no_space: config.on_no_space,
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
