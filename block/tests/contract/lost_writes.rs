//! Hosts that lose writes or lack operations, made of a small tmpfs, a loop device over it, and a
//! ramfs.
//!
//! Needs root. Without it each test says so and checks nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use block::Durability::{Durable, Volatile};
use block::{CacheMode, Operation};

use crate::common::{KIB, MIB, Memory, Rig, discard, errno, numbered, write, zero};
use crate::contract::{Disk, open_with, options};
use fixtures::host::{Loop, Mount};
use fixtures::needs;

/// A disk of 8 MiB on a host with room for 1 MiB.
fn overcommitted(mode: CacheMode) -> (Mount, Loop, Disk) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    let disk = open_with(&device.0, &options(mode)).unwrap();
    (mount, device, disk)
}

#[test]
fn a_block_device_is_a_disk_with_one_user() {
    if !needs::root() {
        return;
    }
    let (_mount, device, disk) = overcommitted(CacheMode::WriteBack);
    let geometry = disk.geometry();
    assert_eq!((geometry.capacity, geometry.logical_block), (8 * MIB, 512));
    let queue = Path::new("/sys/block").join(device.0.file_name().unwrap()).join("queue");
    let granularity = std::fs::read_to_string(queue.join("discard_granularity")).unwrap();
    let said = geometry.discard.expect("loop devices discard").granularity;
    assert_eq!(granularity.trim(), said.to_string());

    let second = open_with(&device.0, &options(CacheMode::WriteBack)).err().unwrap();
    assert!(second.to_string().contains("in use"), "{second}");
    // What a mount does, which knows no locks.
    let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0);
    assert_eq!(exclusive.unwrap_err().raw_os_error(), Some(libc::EBUSY));
}

#[test]
fn a_failed_flush_stays_failed_when_the_host_has_recovered() {
    if !needs::root() {
        return;
    }
    let (mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.fill(0, 4 * MIB, 1, Volatile).expect("the page cache takes it");
    rig.flush().expect_err("the host has no room for it");
    mount.grow("32M");

    let eio = Some(libc::EIO);
    rig.push(0, Operation::Flush, vec![]);
    let done = rig.reap().expect("complete without asking the host, whose answer would be Ok");
    assert_eq!(errno(done.result), eio);
    assert_eq!(errno(rig.fill(0, 4096, 2, Durable)), eio);
    assert_eq!(errno(rig.run(zero(0, 4096, true, Durable), vec![])), eio);
    assert_eq!(errno(Rig::new(disk.as_ref()).flush()), eio, "the latch is the disk's");
    assert!(disk.status().lost_writes, "and the disk says so");
    for _ in 0..2 {
        disk.sync().expect_err("however often it is asked");
    }
    rig.fill(0, 4096, 3, Volatile).expect("nothing was promised");
    assert_eq!(rig.read(0, 4096).unwrap(), vec![3; 4096]);
}

#[test]
fn each_engine_hears_of_a_lost_write() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let (mut first, mut second) = (Rig::new(disk.as_ref()), Rig::new(disk.as_ref()));
    first.fill(0, 4 * MIB, 1, Volatile).unwrap();
    // The host has answered the first flush, and its engine has not seen it yet.
    first.push(0, Operation::Flush, vec![]);
    first.submit();
    thread::sleep(Duration::from_millis(500));
    second.flush().expect_err("the lost data may be ours");
    first.complete().result.unwrap_err();
}

#[test]
fn no_flush_is_told_ok_by_the_failure_of_another() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.fill(0, 4 * MIB, 1, Volatile).unwrap();
    for tag in 0..8 {
        rig.push(tag, Operation::Flush, vec![]);
    }
    for _ in 0..8 {
        rig.complete().result.expect_err("each of them covers what was lost");
    }
}

#[test]
fn a_promise_made_before_a_loss_and_handed_out_after_it_is_withdrawn() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let (mut first, mut second) = (Rig::new(disk.as_ref()), Rig::new(disk.as_ref()));
    first.push(0, Operation::Flush, vec![]);
    first.submit();
    thread::sleep(Duration::from_millis(500));
    second.fill(0, 4 * MIB, 1, Volatile).unwrap();
    second.flush().unwrap_err();
    assert_eq!(errno(first.complete().result), Some(libc::EIO));
}

#[test]
fn durability_is_promised_only_where_it_is_had() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.fill(0, 4 * MIB, 1, Durable).expect_err("a durable write reaches the disk");
    assert_eq!(errno(rig.flush()), Some(libc::EIO), "its sync may have told of others' loss");

    for op in [discard(6 * MIB, MIB, Durable), zero(6 * MIB, MIB, true, Durable)] {
        let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
        let mut rig = Rig::new(disk.as_ref());
        rig.fill(0, 4 * MIB, 1, Volatile).unwrap();
        rig.run(op, vec![]).expect_err("durable after a sync, which fails");
    }
}

#[test]
fn a_full_host_fails_the_write_and_no_flush() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=1M");
    let disk = open_with(&mount.file(8 * MIB), &options(CacheMode::WriteThrough)).unwrap();
    let mut rig = Rig::new(disk.as_ref());
    assert_eq!(errno(rig.fill(0, 2 * MIB, 1, Durable)), Some(libc::ENOSPC));
    rig.flush().unwrap();
    mount.grow("32M");
    rig.fill(0, 2 * MIB, 2, Durable).expect("there is room again");
    assert!(rig.read(0, 2 * MIB).unwrap().iter().all(|&byte| byte == 2));
}

#[test]
fn a_discard_on_a_block_device_frees_its_space() {
    if !needs::root() {
        return;
    }
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let mount = Mount::new("tmpfs", "size=16M");
        let path = mount.file(8 * MIB);
        let device = Loop::new(&path);
        let disk = open_with(&device.0, &options(mode)).unwrap();
        let mut rig = Rig::new(disk.as_ref());
        rig.fill(0, 4 * MIB, 1, Volatile).unwrap();
        rig.flush().unwrap();
        assert_eq!(space_kib(&path), 4 * KIB);
        rig.run(discard(MIB, 2 * MIB, Durable), vec![]).unwrap();
        assert_eq!(space_kib(&path), 2 * KIB, "{mode}");
        rig.run(zero(0, MIB - 512, true, Volatile), vec![]).unwrap();
        assert!(rig.read(0, MIB - 512).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(rig.read(MIB - 512, 512).unwrap(), vec![1; 512]);
    }
}

fn space_kib(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    File::open(path).unwrap().metadata().unwrap().blocks() / 2
}

/// A ramfs neither punches holes nor zeroes.
#[test]
fn a_host_without_holes_ignores_discards_and_still_zeroes() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("ramfs", "mode=700");
    let path = mount.file(0);
    std::fs::write(&path, numbered(0, MIB)).unwrap();
    let disk = open_with(&path, &options(CacheMode::WriteBack)).unwrap();
    assert_eq!(disk.geometry().discard, None);
    let mut rig = Rig::new(disk.as_ref());
    rig.run(discard(0, 4096, Durable), vec![]).expect("a discard is advice");
    assert_eq!(rig.read(0, 4096).unwrap(), numbered(0, 4096));
    for unmap in [true, false] {
        rig.run(write(0, Volatile), Memory::filled(9, MIB).whole()).unwrap();
        rig.run(zero(512, 200 * KIB, unmap, Durable), vec![]).unwrap();
        assert!(rig.read(512, 200 * KIB).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(rig.read(0, 512).unwrap(), vec![9; 512]);
        assert_eq!(rig.read(512 + 200 * KIB, 4096).unwrap(), vec![9; 4096]);
    }
}
