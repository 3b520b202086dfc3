//! Virtio 1.2 §5.6, clause by clause, over the target that `devices` tests by itself; and a driver
//! that lies.

mod commands;
mod configuration;
mod events;
mod hostile;
mod hotplug;
mod several;
mod tasks;

use std::sync::Arc;

use block::{Backend, CacheMode, DiskOptions, RawFile};
use devices::scsi::Identity;
use devices::storage::DiskControl;
use devices::virtio::{Address, Scsi, ScsiBus};
use driver::{Device, Initiator, Machine, Shape, TestDisk};
use fixtures::scratch;
use tempfile::NamedTempFile;

/// A controller that is not set up, with what attaches disks to it.
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

/// A running controller with one disk in memory as LUN 0 of target 0, which has told that it has
/// started.
fn start(queues: u16) -> (Initiator, TestDisk, ScsiBus) {
    let (device, bus) = controller(queues);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 0, Arc::new(disk.clone()));
    let mut host = Initiator::start(device, u64::MAX);
    host.clear_unit_attention(0);
    (host, disk, bus)
}

/// A disk in a file of the given size on the file system of the build, which unlike `/tmp` is no
/// tmpfs.
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
