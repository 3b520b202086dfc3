//! Hosts that lose writes or lack operations: a small tmpfs, a loop device over it, a ramfs.
//! Needs root.

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

/// A disk of 8 MiB on a host with space for 1 MiB.
fn overcommitted(mode: CacheMode) -> (Mount, Loop, Disk) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    let disk = open_with(&device.0, &options(mode)).unwrap();
    (mount, device, disk)
}

#[test]
fn a_block_device_has_one_user() {
    if !needs::root() {
        return;
    }
    let (_mount, device, disk) = overcommitted(CacheMode::WriteBack);
    let geometry = disk.geometry();
    assert_eq!((geometry.capacity, geometry.logical_block), (8 * MIB, 512));
    let queue = Path::new("/sys/block").join(device.0.file_name().unwrap()).join("queue");
    let granularity = std::fs::read_to_string(queue.join("discard_granularity")).unwrap();
    let reported = geometry.discard.expect("loop devices discard").granularity;
    assert_eq!(granularity.trim(), reported.to_string());

    let second = open_with(&device.0, &options(CacheMode::WriteBack)).err().unwrap();
    assert!(second.to_string().contains("in use"), "{second}");
    // As `mount` opens the device, which takes no lock.
    let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0);
    assert_eq!(exclusive.unwrap_err().raw_os_error(), Some(libc::EBUSY));
}

#[test]
fn a_failed_flush_stays_failed_after_the_host_has_recovered() {
    if !needs::root() {
        return;
    }
    let (mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.fill(0, 4 * MIB, 1, Volatile).expect("the page cache takes it");
    rig.flush().expect_err("the host is out of space");
    mount.grow("32M");

    let eio = Some(libc::EIO);
    rig.push(0, Operation::Flush, vec![]);
    let done = rig.reap().expect("completed without a host call, which would succeed");
    assert_eq!(errno(done.result), eio);
    assert_eq!(errno(rig.fill(0, 4096, 2, Durable)), eio);
    assert_eq!(errno(rig.run(zero(0, 4096, true, Durable), vec![])), eio);
    assert_eq!(errno(Rig::new(disk.as_ref()).flush()), eio, "the latch is per disk");
    assert!(disk.status().lost_writes.is_some(), "the status reports it");
    for _ in 0..2 {
        disk.sync().expect_err("each call reports it");
    }
    rig.fill(0, 4096, 3, Volatile).expect("a volatile write promises no durability");
    assert_eq!(rig.read(0, 4096).unwrap(), vec![3; 4096]);
}

#[test]
fn a_lost_write_fails_the_flushes_of_all_engines() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let (mut first, mut second) = (Rig::new(disk.as_ref()), Rig::new(disk.as_ref()));
    first.fill(0, 4 * MIB, 1, Volatile).unwrap();
    // The host has completed the first flush; its engine has not reaped it yet.
    first.push(0, Operation::Flush, vec![]);
    first.submit();
    thread::sleep(Duration::from_millis(500));
    second.flush().expect_err("the lost data may be this engine's");
    first.complete().result.unwrap_err();
}

#[test]
fn concurrent_flushes_all_fail() {
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
        rig.complete().result.expect_err("each covers the lost data");
    }
}

#[test]
fn a_flush_that_is_reaped_after_a_loss_fails() {
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
fn durable_requests_fail_if_data_is_lost() {
    if !needs::root() {
        return;
    }
    let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.fill(0, 4 * MIB, 1, Durable).expect_err("there is no space for it");
    assert_eq!(
        errno(rig.flush()),
        Some(libc::EIO),
        "its sync may have reported the loss of other writes"
    );

    for op in [discard(6 * MIB, MIB, Durable), zero(6 * MIB, MIB, true, Durable)] {
        let (_mount, _device, disk) = overcommitted(CacheMode::WriteBack);
        let mut rig = Rig::new(disk.as_ref());
        rig.fill(0, 4 * MIB, 1, Volatile).unwrap();
        rig.run(op, vec![]).expect_err("it syncs, which fails");
    }
}

#[test]
fn enospc_fails_the_write_and_no_flush() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=1M");
    let disk = open_with(&mount.file(8 * MIB), &options(CacheMode::WriteThrough)).unwrap();
    let mut rig = Rig::new(disk.as_ref());
    assert_eq!(errno(rig.fill(0, 2 * MIB, 1, Durable)), Some(libc::ENOSPC));
    rig.flush().unwrap();
    mount.grow("32M");
    rig.fill(0, 2 * MIB, 2, Durable).expect("there is space again");
    assert!(rig.read(0, 2 * MIB).unwrap().iter().all(|&byte| byte == 2));
}

#[test]
fn a_discard_on_a_block_device_frees_space() {
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
        assert_eq!(allocated_kib(&path), 4 * KIB);
        rig.run(discard(MIB, 2 * MIB, Durable), vec![]).unwrap();
        assert_eq!(allocated_kib(&path), 2 * KIB, "{mode}");
        rig.run(zero(0, MIB - 512, true, Volatile), vec![]).unwrap();
        assert!(rig.read(0, MIB - 512).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(rig.read(MIB - 512, 512).unwrap(), vec![1; 512]);
    }
}

fn allocated_kib(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    File::open(path).unwrap().metadata().unwrap().blocks() / 2
}

/// A ramfs neither punches holes nor zeroes ranges.
#[test]
fn a_host_without_hole_punching_ignores_discards_and_zeroes_by_writes() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("ramfs", "mode=700");
    let path = mount.file(0);
    std::fs::write(&path, numbered(0, MIB)).unwrap();
    let disk = open_with(&path, &options(CacheMode::WriteBack)).unwrap();
    assert_eq!(disk.geometry().discard, None);
    let mut rig = Rig::new(disk.as_ref());
    rig.run(discard(0, 4096, Durable), vec![]).expect("a discard is a hint");
    assert_eq!(rig.read(0, 4096).unwrap(), numbered(0, 4096));
    for unmap in [true, false] {
        rig.run(write(0, Volatile), Memory::filled(9, MIB).whole()).unwrap();
        rig.run(zero(512, 200 * KIB, unmap, Durable), vec![]).unwrap();
        assert!(rig.read(512, 200 * KIB).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(rig.read(0, 512).unwrap(), vec![9; 512]);
        assert_eq!(rig.read(512 + 200 * KIB, 4096).unwrap(), vec![9; 4096]);
    }
}
