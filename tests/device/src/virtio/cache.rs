//! The write cache (§5.2.5.2, §5.2.6.2): durability of completed writes.

use std::sync::Arc;

use block::{CacheMode, Durability, Named, Operation};
use driver::{Disk, Request, Shape, Structure, TestDisk, feature, kind};

use super::plug;

const FLUSH: u64 = feature::BLK_FLUSH;
const WCE: u64 = feature::BLK_CONFIG_WCE;

pub(super) fn start(mode: CacheMode, features: u64) -> (Disk, TestDisk) {
    let backend = TestDisk::new(Shape { mode, ..Shape::default() });
    let changes = feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES;
    let disk = Disk::start(plug(2, Arc::new(backend.clone())), features | changes, 16);
    (disk, backend)
}

/// Submits a write, a discard and a zeroing and returns the durability that all of them request.
pub(super) fn durability(disk: &mut Disk, backend: &TestDisk) -> Durability {
    let _ = backend.take_pushed();
    for request in [
        Request::write(0, &[1; 512]),
        Request::ranges(kind::WRITE_ZEROES, &[(8, 8, 0)]),
        Request::ranges(kind::DISCARD, &[(16, 8, 0)]),
    ] {
        assert_eq!(disk.run(&request).status, 0);
    }
    let given: Vec<_> = backend
        .take_pushed()
        .into_iter()
        .map(|op| match op {
            Operation::Write { durability, .. }
            | Operation::WriteZeroes { durability, .. }
            | Operation::Discard { durability, .. } => durability,
            other => panic!("{other:?} is unexpected"),
        })
        .collect();
    assert_eq!(given, [given[0]; 3], "all kinds have the same durability");
    given[0]
}

/// §5.2.5.2: "Devices […] MUST offer VIRTIO_BLK_F_FLUSH if they offer VIRTIO_BLK_F_CONFIG_WCE":
/// modes with a write cache offer both.
#[test]
fn s5_2_5_2_flush_is_offered_with_write_cache() {
    for &mode in CacheMode::ALL {
        let device = plug(1, Arc::new(TestDisk::new(Shape { mode, ..Shape::default() })));
        let both = if mode.has_write_cache() { FLUSH | WCE } else { 0 };
        assert_eq!(device.offered_features() & (FLUSH | WCE), both, "{mode}");
        assert_eq!(device.config::<1>(32), [u8::from(mode.has_write_cache())], "{mode}");
    }
}

/// §5.2.6.2, cases 1 to 3, for each cache mode and set of features: writes are volatile only if the
/// driver can flush.
#[test]
fn s5_2_6_2_durability_by_mode_and_features() {
    for &mode in CacheMode::ALL {
        for features in [0, FLUSH, WCE, FLUSH | WCE] {
            let (mut disk, backend) = start(mode, features);
            let volatile = mode.has_write_cache() && features & FLUSH != 0;
            let wanted = if volatile { Durability::Volatile } else { Durability::Durable };
            assert_eq!(durability(&mut disk, &backend), wanted, "{mode} {features:#x}");
        }
    }
}

/// §5.2.5.2: "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the device
/// MUST initialize writeback to 0." The driver may read it after FEATURES_OK.
#[test]
fn s5_2_5_2_writeback_starts_at_zero_without_flush() {
    let device = plug(1, Arc::new(TestDisk::new(Shape::default())));
    assert!(device.negotiate(feature::VERSION_1 | WCE | FLUSH));
    assert_eq!(device.config::<1>(32), [1]);
    assert!(device.negotiate(feature::VERSION_1 | WCE));
    assert_eq!(device.config::<1>(32), [0], "before DRIVER_OK already");
    device.reset();
    assert_eq!(device.config::<1>(32), [1], "no driver switched it off");
}

/// §5.2.6.2, case 2: while `writeback` is 0 each completed write is durable, and disabling the
/// cache makes earlier writes durable.
#[test]
fn s5_2_6_2_cache_is_switched_live() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    assert_eq!((durability(&mut disk, &backend), backend.syncs()), (Durability::Volatile, 0));
    let set = |disk: &Disk, value: u8| disk.device.function.write(Structure::Device, 32, &[value]);
    for syncs in 1..3 {
        set(&disk, 0);
        assert_eq!(disk.device.config::<1>(32), [0]);
        assert_eq!(backend.syncs(), syncs, "the switch syncs before it takes effect");
        assert_eq!(durability(&mut disk, &backend), Durability::Durable);
        set(&disk, 1);
        assert_eq!(disk.device.config::<1>(32), [1]);
        assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
    }
}

/// A failed sync leaves the cache enabled; the driver reads that back and keeps flushing.
#[test]
fn s5_2_6_2_cache_stays_enabled_if_sync_fails() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH | WCE);
    backend.fail_next(libc::EIO);
    disk.device.function.write(Structure::Device, 32, &[0]);
    assert_eq!((disk.device.config::<1>(32), backend.syncs()), ([1], 1));
    assert_eq!(durability(&mut disk, &backend), Durability::Volatile);
}

/// A driver without both features cannot switch the cache: it could not flush.
#[test]
fn s5_2_4_writeback_is_read_only_unless_negotiated() {
    for features in [0, FLUSH, WCE] {
        let (mut disk, backend) = start(CacheMode::WriteBack, features);
        let before = (disk.device.config::<1>(32), durability(&mut disk, &backend));
        for value in [0, 1] {
            disk.device.function.write(Structure::Device, 32, &[value]);
            let after = (disk.device.config::<1>(32), durability(&mut disk, &backend));
            assert_eq!(after, before, "{features:#x}, wrote {value}");
        }
        assert_eq!(backend.syncs(), 0);
    }
}

/// Modes with durable writes have no switch.
#[test]
fn durable_modes_have_no_switch() {
    for mode in [CacheMode::DirectSync, CacheMode::WriteThrough] {
        let (mut disk, backend) = start(mode, FLUSH | WCE);
        disk.device.function.write(Structure::Device, 32, &[1]);
        assert_eq!(disk.device.config::<1>(32), [0], "{mode}");
        assert_eq!(durability(&mut disk, &backend), Durability::Durable, "{mode}");
    }
}

/// All other fields are read-only.
#[test]
fn s5_2_4_only_writeback_is_writable() {
    let (disk, _) = start(CacheMode::WriteBack, FLUSH | WCE);
    let before: [u8; 64] = disk.device.config(0);
    for offset in (0..64).filter(|offset| *offset != 32) {
        disk.device.function.write(Structure::Device, offset, &[0x5a]);
    }
    for offset in (0..64).step_by(4) {
        disk.device.function.write(Structure::Device, offset, &[0x5a; 4]);
    }
    assert_eq!(disk.device.config::<64>(0), before);
}

/// §5.2.6.2, case 3: a flush reaches the backend after the completed writes.
#[test]
fn s5_2_6_2_flush_follows_completed_writes() {
    let (mut disk, backend) = start(CacheMode::WriteBack, FLUSH);
    disk.write(0, &[1; 512]);
    disk.flush();
    assert!(matches!(backend.take_pushed()[..], [Operation::Write { .. }, Operation::Flush]));
    backend.fail_next(libc::EIO);
    assert_eq!(disk.run(&Request::bare(kind::FLUSH)).status, 1, "a failed flush is reported");
}

/// Closing the device syncs without a flush of the guest.
#[test]
fn closing_syncs() {
    let (disk, backend) = start(CacheMode::WriteBack, FLUSH);
    assert_eq!(backend.syncs(), 0);
    disk.device.machine().root.close().unwrap();
    assert_eq!((backend.syncs(), backend.engines()), (1, 0));
}
