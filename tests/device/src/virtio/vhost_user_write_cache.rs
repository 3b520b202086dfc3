//! The table "resets and the write cache" of docs/disks.md, vhost-user: a test for each cell.
//!
//! The durability of a write after the reconnect counts: a frontend does not read the `writeback`
//! field again, and its guest sends no flushes if it switched the cache off.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use block::{Durability, Operation};
use devices::virtio::Block;
use devices::virtio::vhost_user::{Connection, VhostUserBlock};
use driver::vhost_user::Monitor;
use driver::{Shape, TestDisk};
use fixtures::scratch;
use tempfile::TempDir;

const VOLATILE: Durability = Durability::Volatile;
const DURABLE: Durability = Durability::Durable;

type SharedDevice = Arc<Mutex<VhostUserBlock>>;

/// A back end that serves one frontend after another in this process.
struct BackEnd {
    folder: TempDir,
    disk: TestDisk,
    /// Serves the next connection.
    device: Arc<Mutex<SharedDevice>>,
}

fn device(disk: &TestDisk) -> SharedDevice {
    let block = Block::new("disk", "serial", 2, Arc::new(disk.clone()));
    Arc::new(Mutex::new(VhostUserBlock::new(block).unwrap()))
}

impl BackEnd {
    fn start() -> Self {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let disk = TestDisk::new(Shape::default());
        let current = Arc::new(Mutex::new(device(&disk)));
        let next = Arc::clone(&current);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let device = Arc::clone(&next.lock().unwrap());
                Connection::new(stream.unwrap(), device).unwrap().serve();
            }
        });
        Self { folder, disk, device: current }
    }

    /// Connects a guest that has just started, with `queues` rings.
    fn guest(&self, queues: u16, tracked: bool) -> Monitor {
        Monitor::start(&self.folder.path().join("socket"), queues, u64::MAX, tracked)
    }

    /// Replaces the device as a new process does. The next connection is served by it.
    fn restart(&self) {
        *self.device.lock().unwrap() = device(&self.disk);
    }

    fn reconnect(&self, guest: &mut Monitor) {
        guest.reconnect(&self.folder.path().join("socket"));
    }

    /// Writes a block and returns the durability that the host is asked for.
    fn durability(&self, guest: &mut Monitor) -> Durability {
        let _ = self.disk.take_pushed();
        guest.write(0, 0, &[1; 512]);
        let pushed = self.disk.take_pushed();
        let [Operation::Write { durability, .. }] = pushed[..] else { panic!("{pushed:?}") };
        durability
    }

    /// A guest that switched the write cache to `on` and has written a block on ring 0.
    fn guest_with_cache(&self, on: bool, tracked: bool) -> Monitor {
        let mut guest = self.guest(1, tracked);
        guest.set_write_cache(on);
        assert_eq!(self.durability(&mut guest), if on { VOLATILE } else { DURABLE });
        guest
    }

    /// The durability after a reconnect, of a back end that was restarted before if `restarts`.
    fn after_reconnect(on: bool, tracked: bool, restarts: bool) -> Durability {
        let back_end = Self::start();
        let mut guest = back_end.guest_with_cache(on, tracked);
        if restarts {
            back_end.restart();
        }
        back_end.reconnect(&mut guest);
        back_end.durability(&mut guest)
    }

    /// The durability after a reset of the device by its driver: the rings stop and start at 0.
    fn after_driver_reset(on: bool) -> Durability {
        let back_end = Self::start();
        let mut guest = back_end.guest_with_cache(on, false);
        guest.restart_driver();
        back_end.durability(&mut guest)
    }
}

#[test]
fn driver_reset_keeps_cache_off() {
    assert_eq!(BackEnd::after_driver_reset(false), DURABLE);
}

#[test]
fn driver_reset_keeps_cache_on() {
    assert_eq!(BackEnd::after_driver_reset(true), VOLATILE);
}

#[test]
fn reconnect_with_record_keeps_cache_off() {
    assert_eq!(BackEnd::after_reconnect(false, true, false), DURABLE);
}

#[test]
fn reconnect_with_record_keeps_cache_on() {
    assert_eq!(BackEnd::after_reconnect(true, true, false), VOLATILE);
}

#[test]
fn reconnect_without_record_keeps_cache_off() {
    assert_eq!(BackEnd::after_reconnect(false, false, false), DURABLE);
}

/// The frontend may be that of another guest, whose setting is unknown.
#[test]
fn reconnect_without_record_switches_cache_off() {
    assert_eq!(BackEnd::after_reconnect(true, false, false), DURABLE);
}

#[test]
fn restart_with_record_keeps_cache_off() {
    assert_eq!(BackEnd::after_reconnect(false, true, true), DURABLE);
}

#[test]
fn restart_with_record_keeps_cache_on() {
    assert_eq!(BackEnd::after_reconnect(true, true, true), VOLATILE);
}

#[test]
fn restart_without_record_keeps_cache_off() {
    assert_eq!(BackEnd::after_reconnect(false, false, true), DURABLE);
}

#[test]
fn restart_without_record_switches_cache_off() {
    assert_eq!(BackEnd::after_reconnect(true, false, true), DURABLE);
}

#[test]
fn next_guest_reads_cache_off() {
    let back_end = BackEnd::start();
    drop(back_end.guest_with_cache(false, false));
    let mut next = back_end.guest(1, true);
    assert_eq!((next.config(32), back_end.durability(&mut next)), ([0], DURABLE));
    // It relies on what it read: its record must have that for a new process.
    back_end.restart();
    back_end.reconnect(&mut next);
    assert_eq!(back_end.durability(&mut next), DURABLE);
    next.set_write_cache(true);
    assert_eq!(back_end.durability(&mut next), VOLATILE);
}

#[test]
fn next_guest_reads_cache_on() {
    let back_end = BackEnd::start();
    drop(back_end.guest_with_cache(true, false));
    let mut next = back_end.guest(1, false);
    assert_eq!((next.config(32), back_end.durability(&mut next)), ([1], VOLATILE));
}

/// The first ring of the guest was never used, so its position does not show that it resumes.
#[test]
fn restart_without_record_checks_all_rings() {
    let back_end = BackEnd::start();
    let mut guest = back_end.guest(2, false);
    guest.set_write_cache(false);
    guest.write(1, 0, &[1; 512]);
    back_end.restart();
    back_end.reconnect(&mut guest);
    assert_eq!(back_end.durability(&mut guest), DURABLE);
}

/// A new process opens the disk again, and its first flush may fail.
#[test]
fn restart_with_failing_flush_keeps_cache_off() {
    let back_end = BackEnd::start();
    let mut guest = back_end.guest_with_cache(false, true);
    back_end.restart();
    back_end.disk.fail_next(libc::EIO);
    back_end.reconnect(&mut guest);
    assert_eq!(guest.config(32), [0]);
}

/// The frontend does not read back that a switch failed.
#[test]
fn failed_switch_off_is_not_reverted() {
    let back_end = BackEnd::start();
    let mut guest = back_end.guest(1, true);
    back_end.disk.fail_next(libc::EIO);
    guest.set_write_cache(false);
    assert_eq!((guest.config(32), back_end.durability(&mut guest)), ([0], DURABLE));
}
