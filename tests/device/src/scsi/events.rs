//! The event queue (§5.6.6.3): attach, detach and growth of disks.

use std::sync::Arc;

use block::{CacheMode, Crossing, DiskOptions, RawFile};
use devices::virtio::Address;
use driver::{Command, Initiator, Shape, TestDisk, response};

use super::{attach, controller, file_disk, start};

#[test]
fn growth_is_reported_by_event_and_unit_attention() {
    let (device, bus) = controller(1);
    let (_file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 2, 5, Arc::new(disk));
    let mut initiator = Initiator::start(device, u64::MAX);
    let to = |cdb: &[u8]| Command {
        lun: [1, 2, 0, 5, 0, 0, 0, 0],
        ..Command::new(0, cdb).with_data_in(8)
    };
    assert_eq!(initiator.run(0, &to(&[0; 6])).sense_triple(), (6, 0x29, 0));
    let buffer = initiator.offer_event_buffer();
    assert_eq!(control.resize(Some(1 << 20)).unwrap(), 1 << 20);
    assert!(initiator.has_no_event(), "the size is unchanged");
    assert_eq!(control.resize(Some(2 << 20)).unwrap(), 2 << 20);
    assert_eq!(initiator.wait_event(buffer), [3, 0, 0, 0, 1, 2, 0, 5, 0, 0, 0, 0, 0x2a, 9, 0, 0]);
    let capacity = to(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(initiator.run(0, &capacity).sense_triple(), (6, 0x2a, 9));
    assert_eq!(initiator.run(0, &capacity).data, [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
    assert_eq!(control.geometry().capacity, 2 << 20);
}

/// With a soft limit of 1 %, which any file system exceeds.
#[test]
fn reached_soft_limit_is_a_unit_attention() {
    let (device, bus) = controller(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = DiskOptions { soft_limit: Some(1), ..DiskOptions::new(CacheMode::WriteBack) };
    let disk = RawFile::open(file.path(), &options).unwrap();
    let control = attach(&bus, 0, 0, Arc::new(disk));
    let mut initiator = Initiator::start(device, u64::MAX);
    initiator.clear_unit_attention(0);
    let read = Command::new(0, &super::read_10(0, 1)).with_data_in(512);
    assert_eq!(initiator.succeed(&read), [0; 512]);
    assert_eq!(control.check_soft_limit().unwrap(), Some(Crossing::Reached));
    assert_eq!(control.check_soft_limit().unwrap(), None);
    assert_eq!(initiator.run(0, &read).sense_triple(), (6, 0x38, 7));
    assert_eq!(initiator.succeed(&read), [0; 512], "reported once");
    // Log page 0Ch counts available and used resources in threshold sets, whose size is in VPD page
    // B2h.
    let log = initiator
        .succeed(&Command::new(0, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 64, 0]).with_data_in(64));
    let count = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let page = initiator.succeed(&Command::new(0, &[0x12, 1, 0xb2, 0, 64, 0]).with_data_in(64));
    let space = control.backend().backing_space().unwrap().unwrap();
    let set = 512_u64 << page[4];
    for (sets, bytes) in [(count(8), space.available), (count(20), space.used)] {
        // Other processes use the file system.
        assert!(
            (u64::from(sets) * set).abs_diff(bytes) < space.total() / 100,
            "{sets} sets, {bytes} bytes"
        );
    }
}

#[test]
fn attach_and_detach_are_reported() {
    let (mut initiator, _, bus) = start(2);
    let report = Command::new(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]).with_data_in(64);
    assert_eq!(initiator.succeed(&report)[3], 8);
    let (first, second) = (initiator.offer_event_buffer(), initiator.offer_event_buffer());
    let disk = TestDisk::new(Shape::default());
    disk.fill(9);
    attach(&bus, 0, 1, Arc::new(disk.clone()));
    assert_eq!(initiator.wait_event(first), [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]);
    let response = initiator.run(0, &Command::new(0, &[0; 6]));
    assert_eq!(response.sense_triple(), (6, 0x3f, 0xe), "REPORTED LUNS DATA HAS CHANGED");
    assert_eq!(initiator.succeed(&report)[3], 16);
    initiator.clear_unit_attention(1);
    let read = Command::new(1, &super::read_10(0, 1)).with_data_in(512);
    assert_eq!(initiator.run(1, &read).data, [9; 512]);
    assert_eq!(disk.engines(), 1);

    assert!(bus.detach(Address { target: 0, lun: 1 }).is_some());
    assert!(bus.detach(Address { target: 0, lun: 1 }).is_none());
    assert_eq!(initiator.wait_event(second), [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(initiator.run(1, &read).sense_triple(), (5, 0x25, 0));
    let released = fixtures::wait_for(|| (disk.engines() == 0).then_some(()));
    assert!(released.is_some(), "the detached disk has no engine");
    // Attach at the same address.
    attach(&bus, 0, 1, Arc::new(disk));
    initiator.clear_unit_attention(1);
    assert_eq!(initiator.run(1, &read).data, [9; 512]);
}

/// A detach waits for requests in flight and rejects new ones.
#[test]
fn detach_waits_for_requests_in_flight() {
    let (mut initiator, disk, bus) = start(1);
    disk.pause();
    let sent = initiator.send(0, &Command::new(0, &super::read_10(0, 1)).with_data_in(512));
    fixtures::wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let detaching = bus.detach(Address { target: 0, lun: 0 }).unwrap();
    let other = initiator.send(0, &Command::new(0, &[0; 6]));
    let answer = initiator.wait(0, &other);
    assert_eq!(answer.response, response::BAD_TARGET);
    disk.resume();
    assert_eq!(initiator.wait(0, &sent).status, 0);
    let before = disk.syncs();
    detaching.drain().unwrap();
    assert_eq!((disk.engines(), disk.syncs() - before), (0, 1));
}

#[test]
fn events_wait_for_buffers_and_overflow_is_reported() {
    let (mut initiator, _, bus) = start(1);
    let disk = || Arc::new(TestDisk::new(Shape::default()));
    for lun in 1..=40 {
        attach(&bus, 0, lun, disk());
    }
    let buffer = initiator.offer_event_buffer();
    let event = initiator.wait_event(buffer);
    assert_eq!((event[0], event[3]), (1, 0x80), "VIRTIO_SCSI_T_EVENTS_MISSED");
    for lun in 2..=32 {
        let buffer = initiator.offer_event_buffer();
        assert_eq!(initiator.wait_event(buffer)[..8], [1, 0, 0, 0, 1, 0, 0, lun]);
    }
    initiator.offer_event_buffer();
    assert!(initiator.has_no_event());
}

/// §5.6.6.3: events require their features.
#[test]
fn no_events_without_features() {
    let (device, bus) = controller(1);
    let (_file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 0, 0, Arc::new(disk));
    let mut initiator = Initiator::start(device, 0);
    initiator.offer_event_buffer();
    control.resize(Some(2 << 20)).unwrap();
    attach(&bus, 0, 1, Arc::new(TestDisk::new(Shape::default())));
    assert!(initiator.has_no_event());
}
