//! The table "resets and the write cache" of docs/disks.md, virtio-blk: a test for each cell.

use block::{CacheMode, Durability};
use driver::{Disk, Structure, feature};

use super::cache::{durability, start};

const FLUSH: u64 = feature::BLK_FLUSH;
const WCE: u64 = feature::BLK_CONFIG_WCE;
const CHANGES: u64 = feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES;

fn set_writeback(disk: &Disk, on: bool) {
    disk.device.function.write(Structure::Device, 32, &[u8::from(on)]);
}

/// Resets the device and negotiates `features`.
fn restart_with(disk: &Disk, features: u64) -> Disk {
    disk.device.reset();
    Disk::start(disk.device.clone(), features | CHANGES, 16)
}

/// The reset of freeze and restore: Linux negotiates again, but the disk's queue keeps its view of
/// the write cache.
#[test]
fn device_reset_keeps_cache_off() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    set_writeback(&disk, false);
    disk.restart();
    assert_eq!(durability(&mut disk, &backend), Durability::Durable);
}

#[test]
fn device_reset_keeps_cache_on() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    disk.restart();
    assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
}

/// §5.2.5: "The cache mode after reset can be either writeback or writethrough. The actual mode can
/// be determined by reading writeback after feature negotiation."
#[test]
fn new_driver_reads_cache_off() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    set_writeback(&disk, false);
    disk.device.reset();
    assert!(disk.device.negotiate(feature::VERSION_1 | FLUSH | WCE));
    assert_eq!(disk.device.config::<1>(32), [0]);
    let mut disk = restart_with(&disk, FLUSH | WCE);
    set_writeback(&disk, true);
    assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
}

#[test]
fn new_driver_reads_cache_on() {
    let (disk, _) = start(CacheMode::WriteBack, FLUSH | WCE);
    disk.device.reset();
    assert!(disk.device.negotiate(feature::VERSION_1 | FLUSH | WCE));
    assert_eq!(disk.device.config::<1>(32), [1]);
}

/// A driver without CONFIG_WCE, which assumes a write cache and flushes.
#[test]
fn driver_without_config_wce_keeps_cache_off() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    set_writeback(&disk, false);
    let mut disk = restart_with(&disk, FLUSH);
    assert_eq!(durability(&mut disk, &backend), Durability::Durable);
}

#[test]
fn driver_without_config_wce_keeps_cache_on() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    let mut disk = restart_with(&disk, FLUSH);
    assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
}

/// Firmware that cannot flush runs between two kernels: its durable writes are not a setting.
#[test]
fn driver_without_flush_restores_cache_on() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    let mut firmware = restart_with(&disk, 0);
    assert_eq!(durability(&mut firmware, &backend), Durability::Durable);
    let mut disk = restart_with(&firmware, FLUSH | WCE);
    assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
}

#[test]
fn driver_without_flush_keeps_cache_off() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    set_writeback(&disk, false);
    let mut firmware = restart_with(&disk, 0);
    assert_eq!(durability(&mut firmware, &backend), Durability::Durable);
    let mut disk = restart_with(&firmware, FLUSH | WCE);
    assert_eq!(durability(&mut disk, &backend), Durability::Durable);
}

/// The driver reads back that it has to flush, but its writes stay durable.
#[test]
fn failed_second_switch_off_keeps_cache_off() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    set_writeback(&disk, false);
    backend.fail_next(libc::EIO);
    set_writeback(&disk, false);
    assert_eq!(disk.device.config::<1>(32), [1]);
    assert_eq!(durability(&mut disk, &backend), Durability::Durable);
    set_writeback(&disk, false);
    assert_eq!(disk.device.config::<1>(32), [0]);
}
