//! Status, features, reset and the PCI transport (§2.1, §2.2, §4.1).

use std::sync::Arc;

use driver::{Arena, Disk, Framing, Request, Shape, Structure, TestDisk, feature, kind, status};
use fixtures::wait_for;

use super::{plug, start};

const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

/// §2.1.2: "The device MUST NOT consume buffers or send any used buffer notifications to the driver
/// before DRIVER_OK."
#[test]
fn s2_1_2_no_buffer_is_consumed_before_driver_ok() {
    let (disk, backend) = start(0);
    let device = disk.device.clone();
    assert!(device.negotiate(disk.features));
    device.enable_interrupts();
    let ring = device.queue(0, 16, disk.features, &mut Arena::new(0x1_0000, 0x2_0000));
    let mut disk = Disk { rings: vec![ring], ..disk };
    let flush = Request::bare(kind::FLUSH);
    let pending = disk.offer(0, &flush, &Framing::usual(&flush));
    disk.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((backend.engines(), backend.pushed(), disk.rings[0].used_index()), (0, 0, 0));
    assert_eq!(device.queue_line(0).take(), 0);
    // The kick before DRIVER_OK is not lost.
    device.start();
    let used = disk.rings[0].wait_used();
    assert_eq!(disk.outcome(&pending, used).status, 0);
}

/// §2.2.2: "The device SHOULD accept any valid subset of features the driver accepts, otherwise it
/// MUST fail to set the FEATURES_OK device status bit".
#[test]
fn s2_2_2_any_subset_of_features_is_accepted() {
    let device = plug(2, Arc::new(TestDisk::new(Shape::default())));
    let offered = device.offered_features();
    let bits: Vec<u64> = (0..64)
        .map(|bit| 1 << bit)
        .filter(|bit| offered & bit & !feature::VERSION_1 != 0)
        .collect();
    assert_eq!(bits.len(), 10, "{offered:#x}");
    for chosen in 0..1u32 << bits.len() {
        let subset = bits.iter().enumerate().filter(|(at, _)| chosen >> at & 1 != 0);
        let features = subset.fold(feature::VERSION_1, |all, (_, bit)| all | bit);
        assert!(device.negotiate(features), "{features:#x}");
    }
}

/// §2.2.2: the device rejects each feature that it did not offer.
#[test]
fn s2_2_2_features_not_offered_are_rejected() {
    let device = plug(1, Arc::new(TestDisk::new(Shape::default())));
    let offered = device.offered_features();
    for bit in (0..64).map(|bit| 1u64 << bit).filter(|bit| offered & bit == 0) {
        assert!(!device.negotiate(feature::VERSION_1 | bit), "{bit:#x}");
        assert_eq!(device.status(), status::ACKNOWLEDGE | status::DRIVER);
    }
}

/// §6.2: "A device MUST offer VIRTIO_F_VERSION_1" and MAY fail to operate without it.
#[test]
fn s6_2_version_1_is_offered_and_required() {
    let device = plug(1, Arc::new(TestDisk::new(Shape::default())));
    assert_ne!(device.offered_features() & feature::VERSION_1, 0);
    assert!(!device.negotiate(0));
}

/// §4.1.2.1: vendor 0x1AF4, device 0x1040 plus the type, revision at least 1.
#[test]
fn s4_1_2_1_device_is_modern() {
    let device = plug(1, Arc::new(TestDisk::new(Shape::default())));
    assert_eq!(device.function.config_dword(0), 0x1042_1af4);
    assert!(device.function.config_dword(8) & 0xff >= 1);
}

/// §4.1.4.3.1: "The device MUST present the feature bits it is offering in device_feature, starting
/// at bit device_feature_select ∗ 32", and zeroes beyond the defined ones.
#[test]
fn s4_1_4_3_1_features_by_halves() {
    let device = plug(1, Arc::new(TestDisk::new(Shape::default())));
    for select in [2u32, 3, 0x8000_0000, u32::MAX] {
        device.function.write(Structure::Common, 0x00, &select.to_le_bytes());
        assert_eq!(device.function.common_u32(0x00), select);
        assert_eq!(device.function.common_u32(0x04), 0);
        device.function.write(Structure::Common, 0x08, &select.to_le_bytes());
        device.function.write(Structure::Common, 0x0c, &[0xff; 4]);
    }
    device.set_driver_features(feature::VERSION_1 | feature::BLK_FLUSH);
    for (select, half) in [(0u32, 1 << 9), (1, 1)] {
        device.function.write(Structure::Common, 0x08, &select.to_le_bytes());
        assert_eq!(device.function.common_u32(0x0c), half, "the register reads back");
    }
}

/// §4.1.4.3.1: "The device MUST reset when 0 is written to device_status, and present a 0 in
/// device_status once that is done", "The device MUST present a 0 in queue_enable on reset.";
/// §4.1.5.1.2: vectors are unmapped.
#[test]
fn s4_1_4_3_1_reset_clears_all_state() {
    let (disk, _) = start(u64::MAX);
    let function = &disk.device.function;
    let state = || {
        function.write(Structure::Common, 0x16, &0u16.to_le_bytes());
        let words: Vec<u32> = (0x20..0x38).step_by(4).map(|at| function.common_u32(at)).collect();
        let shorts = [0x10, 0x12, 0x18, 0x1a, 0x1c, 0x1e].map(|at| function.common_u16(at));
        (disk.device.status(), words, shorts)
    };
    assert_ne!(state().0, 0);
    disk.device.reset();
    assert_eq!(state(), (0, vec![0; 6], [0xffff, 1, 256, 0xffff, 0, 0]));
}

/// §4.1.4.3.2: once status reads 0 all state is cleared, so that a second driver can negotiate
/// other features.
#[test]
fn s4_1_4_3_2_second_driver_starts_from_reset_state() {
    let (mut disk, _) = start(feature::EVENT_IDX | feature::INDIRECT_DESC);
    for features in [0, feature::EVENT_IDX, feature::INDIRECT_DESC | feature::BLK_FLUSH, u64::MAX] {
        disk.device.reset();
        disk = Disk::start(disk.device.clone(), features, 8);
        disk.write(1, &[3; 512]);
        assert_eq!(disk.read(1, 512), [3; 512]);
    }
}

/// §4.1.4.4.1: the notification structure is 2-byte aligned and has a doorbell for each queue.
#[test]
fn s4_1_4_4_1_each_queue_has_a_doorbell() {
    let backend = TestDisk::new(Shape::default());
    let disk = Disk::start(plug(4, Arc::new(backend)), u64::MAX, 16);
    let function = &disk.device.function;
    let doorbells: Vec<_> = (0..4).map(|queue| function.doorbell(queue)).collect();
    assert!(doorbells.iter().all(|at| at.is_multiple_of(2)));
    assert_eq!(function.machine.hypervisor.doorbells(), doorbells, "all are attached and distinct");
}

/// §4.1.4.5.1: "The device MUST set the Device Configuration Interrupt bit in ISR status before
/// sending a device configuration change notification", and "MUST reset ISR status to 0 on driver
/// read".
#[test]
fn s4_1_4_5_1_isr_status_is_cleared_by_reading() {
    let (mut disk, _) = start(0);
    let isr = |disk: &Disk| disk.device.function.read::<1>(Structure::Isr, 0)[0];
    disk.flush();
    assert_eq!(isr(&disk), 0, "queue interrupts do not set ISR with MSI-X");
    disk.rings[0].offer_raw(0xffff);
    disk.device.function.kick(0);
    assert_eq!(disk.device.config_line().wait(fixtures::PATIENCE), 1);
    assert_eq!((isr(&disk), isr(&disk)), (2, 0));
}

/// §2.1.2: "If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device
/// configuration change notification to the driver."
#[test]
fn s2_1_2_needs_reset_is_notified_once() {
    let (mut disk, _) = start(0);
    for _ in 0..3 {
        disk.rings[0].offer_raw(0xffff);
        disk.device.function.kick(0);
    }
    wait_for(|| disk.device.needs_reset().then_some(())).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(disk.device.config_line().take(), 1);
    assert_eq!(disk.device.status(), READY | status::DRIVER_OK | status::NEEDS_RESET);
}

/// §4.1.5.1.2.1: "the device MUST support mapping any event type to any valid vector".
#[test]
fn s4_1_5_1_2_1_queues_may_share_a_vector() {
    let backend = TestDisk::new(Shape::default());
    let mut disk = Disk::start(plug(2, Arc::new(backend)), 0, 16);
    let shared = disk.device.queue_line(1);
    for queue in 0..2u16 {
        disk.device.function.write(Structure::Common, 0x16, &queue.to_le_bytes());
        disk.device.function.write(Structure::Common, 0x1a, &2u16.to_le_bytes());
        assert_eq!(disk.device.function.common_u16(0x1a), 2);
        let flush = Request::bare(kind::FLUSH);
        let outcome = disk.run_framed(queue.into(), &flush, &Framing::usual(&flush));
        assert_eq!((outcome.status, shared.wait(fixtures::PATIENCE)), (0, 1));
    }
    assert_eq!(disk.device.queue_line(0).take(), 0);
}

/// §4.1.5.1.2: a queue on NO_VECTOR works without interrupts.
#[test]
fn s4_1_5_1_2_queue_without_vector_sends_no_interrupt() {
    let (mut disk, _) = start(0);
    disk.device.function.write(Structure::Common, 0x1a, &0xffffu16.to_le_bytes());
    disk.flush();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((disk.device.queue_line(0).take(), disk.device.config_line().take()), (0, 0));
}
