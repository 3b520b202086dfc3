//! The event queue (§5.6.6.3): disks that come, go and grow.

use std::sync::Arc;

use block::{CacheMode, Crossing, DiskOptions, RawFile};
use devices::virtio::Address;
use driver::{Command, Initiator, Shape, TestDisk, response};

use super::{attach, controller, file_disk, start};

#[test]
fn a_disk_that_grows_is_told_twice() {
    let (device, bus) = controller(1);
    let (_file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 2, 5, Arc::new(disk));
    let mut host = Initiator::start(device, u64::MAX);
    let to = |cdb: &[u8]| Command {
        lun: [1, 2, 0, 5, 0, 0, 0, 0],
        ..Command::new(0, cdb).with_data_in(8)
    };
    assert_eq!(host.run(0, &to(&[0; 6])).sense_triple(), (6, 0x29, 0));
    let buffer = host.offer_event_buffer();
    assert_eq!(control.resize(Some(1 << 20)).unwrap(), 1 << 20);
    assert!(host.has_no_event(), "it has not grown");
    assert_eq!(control.resize(Some(2 << 20)).unwrap(), 2 << 20);
    assert_eq!(host.wait_event(buffer), [3, 0, 0, 0, 1, 2, 0, 5, 0, 0, 0, 0, 0x2a, 9, 0, 0]);
    let capacity = to(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(host.run(0, &capacity).sense_triple(), (6, 0x2a, 9));
    assert_eq!(host.run(0, &capacity).data, [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
    assert_eq!(control.geometry().capacity, 2 << 20);
}

/// More than one percent of any file system that tests run on is used.
#[test]
fn a_soft_limit_that_is_reached_is_told_with_the_next_command() {
    let (device, bus) = controller(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = DiskOptions { soft_limit: Some(1), ..DiskOptions::new(CacheMode::WriteBack) };
    let disk = RawFile::open(file.path(), &options).unwrap();
    let control = attach(&bus, 0, 0, Arc::new(disk));
    let mut host = Initiator::start(device, u64::MAX);
    host.clear_unit_attention(0);
    let read = Command::new(0, &super::read_10(0, 1)).with_data_in(512);
    assert_eq!(host.succeed(&read), [0; 512]);
    assert_eq!(control.check_soft_limit().unwrap(), Some(Crossing::Reached));
    assert_eq!(control.check_soft_limit().unwrap(), None);
    assert_eq!(host.run(0, &read).sense_triple(), (6, 0x38, 7));
    assert_eq!(host.succeed(&read), [0; 512], "told once");
    // Page 0Ch has what is available and what is used, in sets of the size that page B2h tells.
    let log =
        host.succeed(&Command::new(0, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 64, 0]).with_data_in(64));
    let count = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let page = host.succeed(&Command::new(0, &[0x12, 1, 0xb2, 0, 64, 0]).with_data_in(64));
    let space = control.backend().backing_space().unwrap().unwrap();
    let set = 512_u64 << page[4];
    for (told, bytes) in [(count(8), space.available), (count(20), space.used)] {
        // Others use the file system meanwhile.
        assert!((u64::from(told) * set).abs_diff(bytes) < space.total() / 100, "{told} of {bytes}");
    }
}

#[test]
fn disks_come_and_go() {
    let (mut host, _, bus) = start(2);
    let report = Command::new(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]).with_data_in(64);
    assert_eq!(host.succeed(&report)[3], 8);
    let (first, second) = (host.offer_event_buffer(), host.offer_event_buffer());
    let disk = TestDisk::new(Shape::default());
    disk.fill(9);
    attach(&bus, 0, 1, Arc::new(disk.clone()));
    assert_eq!(host.wait_event(first), [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]);
    let told = host.run(0, &Command::new(0, &[0; 6]));
    assert_eq!(told.sense_triple(), (6, 0x3f, 0xe), "REPORTED LUNS DATA HAS CHANGED");
    assert_eq!(host.succeed(&report)[3], 16);
    host.clear_unit_attention(1);
    let read = Command::new(1, &super::read_10(0, 1)).with_data_in(512);
    assert_eq!(host.run(1, &read).data, [9; 512]);
    assert_eq!(disk.engines(), 1);

    assert!(bus.detach(Address { target: 0, lun: 1 }).is_some());
    assert!(bus.detach(Address { target: 0, lun: 1 }).is_none());
    assert_eq!(host.wait_event(second), [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(host.run(1, &read).sense_triple(), (5, 0x25, 0));
    let let_go = fixtures::wait_for(|| (disk.engines() == 0).then_some(()));
    assert!(let_go.is_some(), "nobody holds a disk that is gone");
    // And again under the same number.
    attach(&bus, 0, 1, Arc::new(disk));
    host.clear_unit_attention(1);
    assert_eq!(host.run(1, &read).data, [9; 512]);
}

/// Work under way is not cut off; nothing new begins.
#[test]
fn a_disk_that_is_busy_goes_when_it_is_done() {
    let (mut host, disk, bus) = start(1);
    disk.pause();
    let sent = host.send(0, &Command::new(0, &super::read_10(0, 1)).with_data_in(512));
    fixtures::wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let leaving = bus.detach(Address { target: 0, lun: 0 }).unwrap();
    let other = host.send(0, &Command::new(0, &[0; 6]));
    let answer = host.wait(0, &other);
    assert_eq!(answer.response, response::BAD_TARGET);
    disk.resume();
    assert_eq!(host.wait(0, &sent).status, 0);
    let before = disk.syncs();
    leaving.drain().unwrap();
    assert_eq!((disk.engines(), disk.syncs() - before), (0, 1));
}

#[test]
fn events_without_a_buffer_wait_and_too_many_are_lost() {
    let (mut host, _, bus) = start(1);
    let disk = || Arc::new(TestDisk::new(Shape::default()));
    for lun in 1..=40 {
        attach(&bus, 0, lun, disk());
    }
    let buffer = host.offer_event_buffer();
    let event = host.wait_event(buffer);
    assert_eq!((event[0], event[3]), (1, 0x80), "some were lost");
    for lun in 2..=32 {
        let buffer = host.offer_event_buffer();
        assert_eq!(host.wait_event(buffer)[..8], [1, 0, 0, 0, 1, 0, 0, lun]);
    }
    host.offer_event_buffer();
    assert!(host.has_no_event());
}

/// §5.6.6.3: not unless it was negotiated.
#[test]
fn events_nobody_asked_for_are_not_sent() {
    let (device, bus) = controller(1);
    let (_file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 0, 0, Arc::new(disk));
    let mut host = Initiator::start(device, 0);
    host.offer_event_buffer();
    control.resize(Some(2 << 20)).unwrap();
    attach(&bus, 0, 1, Arc::new(TestDisk::new(Shape::default())));
    assert!(host.has_no_event());
}
