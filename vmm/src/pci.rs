//! Devices on the PCI bus, made as the configuration says.

use std::io;
use std::sync::Arc;

use block::{DiskOptions, OpenError, RawFile};
use devices::pci::{BusFull, PciRoot, Window};
use devices::virtio::DiskControl;
use devices::virtio::{Block, Net, PciTransport, Rng, Tap, TapError, VirtioDevice};
use devices::{GuestMemory, Hypervisor};
use thiserror::Error;

use crate::config::{Bus, DiskConfig, MachineConfig, NetConfig};
use crate::layout::PCI_WINDOW;

/// Why a device cannot be had.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The disk cannot be opened.
    #[error("disk {0:?}")]
    Disk(String, #[source] OpenError),
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
    let mut controls = Vec::new();
    for disk in &config.disks {
        let (device, control) = open_disk(disk)?;
        add(device)?;
        controls.push(control);
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

fn open_disk(config: &DiskConfig) -> Result<(Box<dyn VirtioDevice>, DiskControl), Error> {
    Ok(match config.bus {
        Bus::VirtioBlk => {
            let block = open_block(config)?;
            let control = block.control();
            (Box::new(block), control)
        }
    })
}

/// The disk as a virtio-blk device.
///
/// # Errors
///
/// When it cannot be opened.
pub(crate) fn open_block(config: &DiskConfig) -> Result<Block, Error> {
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
    let backend = RawFile::open(&config.path, &options)
        .map_err(|error| Error::Disk(config.id.clone(), error))?;
    Ok(Block::new(&config.id, &config.serial, config.queues, Arc::new(backend)))
}

fn open_net(config: &NetConfig) -> Result<Box<dyn VirtioDevice>, Error> {
    let tap = Tap::open(&config.tap).map_err(|error| Error::Tap(config.tap.clone(), error))?;
    Ok(Box::new(Net::new(tap, config.mac)))
}
