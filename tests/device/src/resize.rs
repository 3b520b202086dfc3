//! Growth of a disk under a running driver (Virtio 1.2 §5.2.5, §4.1.4.3.1).

use std::io::Write;
use std::sync::Arc;

use block::{CacheMode, DiskOptions, RawFile, ResizeError};
use devices::storage::DiskControl;
use devices::storage::OperationKind;
use devices::virtio::Block;
use driver::{Device, Disk, Machine, Request, Structure, status};
use fixtures::{PATIENCE, scratch};
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const SECTORS_OF_MIB: u64 = MIB / 512;
/// Offset of `config_generation` in the common configuration.
const GENERATION: u32 = 0x15;
/// The ISR status of a configuration change.
const ISR_CONFIG: u8 = 2;

/// A virtio-blk device over an image file, and its control plane.
struct Resizable {
    file: NamedTempFile,
    control: DiskControl,
    device: Device,
}

fn plug() -> Resizable {
    let mut file = NamedTempFile::new_in(scratch()).unwrap();
    file.write_all(&vec![0x11; 1 << 20]).unwrap();
    let backend = RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack)).unwrap();
    let block = Block::new("disk", "serial", 2, Arc::new(backend));
    let control = block.control();
    let device = Device::find(&Machine::new(vec![Box::new(block)]), 1);
    Resizable { file, control, device }
}

fn generation(device: &Device) -> u8 {
    let [generation] = device.function.read(Structure::Common, GENERATION);
    generation
}

fn capacity_sectors(device: &Device) -> u64 {
    u64::from_le_bytes(device.config(0))
}

#[test]
fn driver_is_notified_and_uses_new_size() {
    let Resizable { file, control, device } = plug();
    let mut disk = Disk::start(device, u64::MAX, 64);
    assert_eq!(capacity_sectors(&disk.device), SECTORS_OF_MIB);
    let (before, line) = (generation(&disk.device), disk.device.config_line());
    assert_ne!(
        disk.run(&Request::write(SECTORS_OF_MIB, &[7; 512])).status,
        0,
        "beyond the old capacity"
    );
    assert_eq!(line.take(), 0);

    assert_eq!(control.resize(Some(2 * MIB)).unwrap(), 2 * MIB);
    assert_eq!(line.wait(PATIENCE), 1, "one interrupt");
    let [isr] = disk.device.function.read::<1>(Structure::Isr, 0);
    assert_eq!(isr, ISR_CONFIG);
    assert_ne!(generation(&disk.device), before);
    assert_eq!(capacity_sectors(&disk.device), 2 * SECTORS_OF_MIB);

    // Both queues accept the new sectors without a reset.
    for (queue, byte) in [(0, 7), (1, 8)] {
        let sector = SECTORS_OF_MIB + queue * 8;
        let request = Request::write(sector, &[byte; 512]);
        let framing = driver::Framing::usual(&request);
        assert_eq!(disk.run_framed(usize::try_from(queue).unwrap(), &request, &framing).status, 0);
    }
    let content = std::fs::read(file.path()).unwrap();
    assert_eq!((content[1 << 20], content[(1 << 20) + 4096]), (7, 8));
    assert_ne!(
        disk.run(&Request::read(2 * SECTORS_OF_MIB, 512)).status,
        0,
        "beyond the new capacity"
    );
}

/// The generation detects a capacity read in halves around a change (§2.5.3).
#[test]
fn generation_detects_torn_read() {
    let Resizable { control, device, .. } = plug();
    let before = generation(&device);
    let low: [u8; 4] = device.config(0);
    control.resize(Some(3 * MIB)).unwrap();
    let high: [u8; 4] = device.config(4);
    assert_ne!(
        generation(&device),
        before,
        "{low:?} and {high:?} are halves of different capacities"
    );
    let after = generation(&device);
    assert_eq!(capacity_sectors(&device), 3 * SECTORS_OF_MIB);
    assert_eq!(generation(&device), after);
}

#[test]
fn no_notification_without_a_change() {
    let Resizable { control, device, .. } = plug();
    let (before, line) = (generation(&device), device.config_line());
    assert!(matches!(control.resize(Some(MIB / 2)), Err(ResizeError::Shrink { .. })));
    assert_eq!(control.resize(None).unwrap(), MIB);
    assert_eq!(generation(&device), before);

    // No notification before DRIVER_OK (§3.1.1).
    assert!(device.negotiate(device.offered_features()));
    device.enable_interrupts();
    control.resize(Some(2 * MIB)).unwrap();
    assert_eq!(device.status() & status::DRIVER_OK, 0);
    assert_eq!(line.take(), 0);
    assert_eq!(capacity_sectors(&device), 2 * SECTORS_OF_MIB);
}

#[test]
fn control_plane_reports_driver_activity() {
    let Resizable { control, device, .. } = plug();
    let mut disk = Disk::start(device, u64::MAX, 64);
    assert!(control.write_cache());
    for _ in 0..10 {
        disk.write(0, &[1; 4096]);
    }
    disk.flush();
    let stats = &control.stats()[0];
    assert_eq!(stats.kind(OperationKind::Write).requests.get(), 10);
    assert_eq!(stats.kind(OperationKind::Write).bytes.get(), 40960);
    assert_eq!(stats.kind(OperationKind::Flush).requests.get(), 1);
    assert_eq!(stats.wait.counts().sum::<u64>(), 11, "each request has a wait time");
    assert_eq!(stats.in_flight.get(), 0);
    disk.device.function.write(Structure::Device, 32, &[0]);
    assert!(!control.write_cache(), "the driver disabled it");
}
