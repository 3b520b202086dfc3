//! Requests that the host refuses with ENOSPC, failed or held.

use std::thread;
use std::time::{Duration, Instant};

use block::Durability::{Durable, Volatile};
use block::{Backend, CacheMode, DiskOptions, Named, OnEnospc, Operation};

use crate::common::{KIB, MIB, Memory, Rig, errno, read, write, zero};
use crate::contract::{Disk, open_with, options};
use fixtures::host::{Loop, Mount};
use fixtures::needs;

const LONG: Duration = Duration::from_secs(60);

/// A disk of 8 MiB on a host with space for 1 MiB that holds requests on ENOSPC.
fn holding(mode: CacheMode, deadline: Duration) -> (Mount, Disk) {
    let mount = Mount::new("tmpfs", "size=1M");
    let options = DiskOptions { on_enospc: OnEnospc::Hold { deadline }, ..options(mode) };
    let disk = open_with(&mount.file(8 * MIB), &options).unwrap();
    (mount, disk)
}

/// Waits until the disk holds a request.
fn wait_until_held(rig: &mut Rig, disk: &dyn Backend) {
    let start = Instant::now();
    while disk.status().enospc_hold.is_none() {
        assert!(rig.reap().is_none(), "held, not completed");
        assert!(start.elapsed() < LONG, "no request is held");
        thread::sleep(Duration::from_millis(1));
        rig.submit();
    }
}

#[test]
fn a_held_write_completes_when_there_is_space_and_delays_no_other_request() {
    if !needs::root() {
        return;
    }
    for durability in [Volatile, Durable] {
        let (mount, disk) = holding(CacheMode::WriteBack, LONG);
        let mut rig = Rig::new(disk.as_ref());
        let mut data = Memory::filled(7, 2 * MIB);
        rig.push(9, write(0, durability), data.whole());
        wait_until_held(&mut rig, disk.as_ref());
        let held = disk.status().enospc_hold.unwrap();
        assert_eq!((held.requests, held.errno), (1, libc::ENOSPC));

        // Other requests complete meanwhile; only the tag of the held write is in use.
        rig.flush().expect("a held write has not completed: no flush covers it");
        rig.run(read(4 * MIB), Memory::filled(1, 4 * KIB).whole()).unwrap();
        rig.fill(0, 4 * KIB, 7, Volatile).expect("the start of the held write is allocated");

        mount.grow("32M");
        let done = rig.complete();
        assert_eq!(done.tag, 9);
        done.result.unwrap();
        assert!(rig.read(0, 2 * MIB).unwrap().iter().all(|&byte| byte == 7));
        assert_eq!(disk.status().enospc_hold, None);
    }
}

#[test]
fn zeroing_that_allocates_is_held() {
    if !needs::root() {
        return;
    }
    let (mount, disk) = holding(CacheMode::WriteBack, LONG);
    let mut rig = Rig::new(disk.as_ref());
    rig.push(3, zero(0, 4 * MIB, false, Durable), vec![]);
    wait_until_held(&mut rig, disk.as_ref());
    mount.grow("32M");
    rig.complete().result.unwrap();
    assert!(rig.read(0, 4 * MIB).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_held_write_fails_at_its_deadline() {
    if !needs::root() {
        return;
    }
    let deadline = Duration::from_millis(250);
    let (mount, disk) = holding(CacheMode::WriteBack, deadline);
    let mut rig = Rig::new(disk.as_ref());
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(errno(rig.fill(0, 2 * MIB, 1, Volatile)), Some(libc::ENOSPC));
        let took = start.elapsed();
        assert!(took >= deadline && took < LONG, "{took:?}");
        assert_eq!(disk.status().enospc_hold, None);
    }
    mount.grow("32M");
    rig.fill(0, 2 * MIB, 2, Volatile).unwrap();
    rig.flush().expect("nothing was lost");
}

#[test]
fn dropping_an_engine_ends_its_holds() {
    if !needs::root() {
        return;
    }
    let (_mount, disk) = holding(CacheMode::WriteBack, LONG);
    let mut rig = Rig::new(disk.as_ref());
    let mut data: Vec<_> = (0..4).map(|_| Memory::filled(7, 2 * MIB)).collect();
    for (tag, data) in (0..).zip(&mut data) {
        rig.push(tag, write(u64::from(tag) * 2 * MIB, Volatile), data.whole());
    }
    wait_until_held(&mut rig, disk.as_ref());
    let start = Instant::now();
    drop(rig);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(disk.status().enospc_hold, None);
}

/// As at the detach of a disk.
#[test]
fn held_requests_are_retried_and_fail_when_holding_stops() {
    if !needs::root() {
        return;
    }
    let (mount, disk) = holding(CacheMode::WriteBack, LONG);
    let mut rig = Rig::new(disk.as_ref());
    let mut data: Vec<_> = (0..2).map(|_| Memory::filled(7, 2 * MIB)).collect();
    rig.push(0, write(0, Volatile), data[0].whole());
    rig.push(1, write(4 * MIB, Volatile), data[1].whole());
    wait_until_held(&mut rig, disk.as_ref());
    let start = Instant::now();
    disk.stop_holding();
    for _ in 0..2 {
        assert_eq!(errno(rig.complete().result), Some(libc::ENOSPC));
    }
    assert_eq!(disk.status().enospc_hold, None);
    assert_eq!(errno(rig.fill(0, 4 * MIB, 1, Volatile)), Some(libc::ENOSPC), "immediately");
    assert!(start.elapsed() < LONG / 4, "{:?}", start.elapsed());
    mount.grow("32M");
    rig.fill(0, 2 * MIB, 2, Volatile).unwrap();
    rig.flush().expect("nothing was lost");
}

#[test]
fn held_writes_complete_once_each() {
    if !needs::root() {
        return;
    }
    let (mount, disk) = holding(CacheMode::WriteBack, LONG);
    let mut rig = Rig::new(disk.as_ref());
    let mut data: Vec<_> = (0..4u8).map(|byte| Memory::filled(byte, 2 * MIB)).collect();
    for (tag, data) in (0..).zip(&mut data) {
        rig.push(tag, write(u64::from(tag) * 2 * MIB, Volatile), data.whole());
    }
    wait_until_held(&mut rig, disk.as_ref());
    rig.push(20, Operation::Flush, vec![]);
    let done = rig.complete();
    assert_eq!(done.tag, 20);
    done.result.unwrap();
    mount.grow("32M");
    rig.complete_all(4);
    for byte in 0..4u8 {
        let found = rig.read(u64::from(byte) * 2 * MIB, 2 * MIB).unwrap();
        assert!(found.iter().all(|&found| found == byte));
    }
    assert_eq!(disk.status().enospc_hold, None);
}

/// A loop device of 8 MiB on a sparse file, on a host with space for 1 MiB.
fn thin_device() -> (Mount, Loop) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    (mount, device)
}

#[test]
fn a_thin_device_holds_direct_writes_only_and_refuses_other_modes() {
    if !needs::root() {
        return;
    }
    let (mount, device) = thin_device();
    let hold = OnEnospc::Hold { deadline: LONG };
    for &mode in CacheMode::ALL.iter().filter(|mode| !mode.is_direct()) {
        let options = DiskOptions { on_enospc: hold, ..options(mode) };
        let error = open_with(&device.0, &options).err().unwrap().to_string();
        assert!(error.contains("loop device") && error.contains("sparse file"), "{error}");
        let remedy = format!("use cache = \"{}\"", mode.direct_equivalent());
        assert!(error.ends_with(&remedy), "{error}");
        drop(open_with(&device.0, &options.read_only()).expect("no write can be held"));
    }
    for mode in [CacheMode::None, CacheMode::DirectSync] {
        let options = DiskOptions { on_enospc: hold, ..options(mode) };
        let disk = open_with(&device.0, &options).unwrap();
        let mut rig = Rig::new(disk.as_ref());
        let mut data = Memory::filled(7, 2 * MIB);
        rig.push(9, write(0, mode.write_durability()), data.whole());
        wait_until_held(&mut rig, disk.as_ref());
        mount.grow("32M");
        rig.complete().result.unwrap();
        rig.flush().expect("nothing was lost");
        assert!(rig.read(0, 2 * MIB).unwrap().iter().all(|&byte| byte == 7), "{mode}");
        rig.run(zero(0, 8 * MIB, true, Durable), vec![]).unwrap();
        drop((rig, disk));
        mount.grow("1M");
    }
}
