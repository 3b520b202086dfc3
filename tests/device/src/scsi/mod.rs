//! virtio-scsi: conformance to Virtio 1.2 §5.6, hotplug, and hostile drivers. The SCSI target
//! itself is tested in devices.

mod commands;
mod configuration;
mod events;
mod hostile;
mod hotplug;
mod many_disks;
mod sick_store;
mod store_queries;
mod task_management;
mod write_cache_resets;

use std::sync::Arc;

use block::{Backend, CacheMode, DiskOptions, RawFile};
use devices::scsi::Identity;
use devices::storage::DiskControl;
use devices::virtio::{Address, Scsi, ScsiBus};
use driver::{Device, Initiator, Machine, Shape, TestDisk};
use fixtures::scratch;
use tempfile::NamedTempFile;

/// A controller that is not initialized, and its bus.
fn controller(queues: u16) -> (Device, ScsiBus) {
    let scsi = Scsi::new("scsi", queues).unwrap();
    let bus = scsi.bus();
    (Device::find(&Machine::new(vec![Box::new(scsi)]), 1), bus)
}

fn attach(bus: &ScsiBus, target: u8, lun: u16, backend: Arc<dyn Backend>) -> DiskControl {
    let name = format!("disk{target}.{lun}");
    let identity = Identity::new(&name, "/images");
    bus.attach(Address { target, lun }, &name, identity, backend).unwrap()
}

/// An initialized controller with a [`TestDisk`] as LUN 0 of target 0, its unit attention cleared.
fn start(queues: u16) -> (Initiator, TestDisk, ScsiBus) {
    let (device, bus) = controller(queues);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 0, Arc::new(disk.clone()));
    let mut initiator = Initiator::start(device, u64::MAX);
    initiator.clear_unit_attention(0);
    (initiator, disk, bus)
}

/// A disk over an image file of `bytes`.
fn file_disk(bytes: u64, mode: CacheMode) -> (NamedTempFile, RawFile) {
    let file = NamedTempFile::new_in(scratch()).unwrap();
    file.as_file().set_len(bytes).unwrap();
    let disk = RawFile::open(file.path(), &DiskOptions::new(mode)).unwrap();
    (file, disk)
}

fn read_10(lba: u32, blocks: u16) -> Vec<u8> {
    transfer_10(0x28, lba, blocks)
}

fn write_10(lba: u32, blocks: u16) -> Vec<u8> {
    transfer_10(0x2a, lba, blocks)
}

fn transfer_10(opcode: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let [a, b, c, d] = lba.to_be_bytes();
    let [high, low] = blocks.to_be_bytes();
    vec![opcode, 0, a, b, c, d, 0, high, low, 0]
}
