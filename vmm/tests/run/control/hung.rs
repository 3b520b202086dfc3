//! A store that does not answer holds up the request for it, and no other.

use std::thread;
use std::time::{Duration, Instant};

use fixtures::{Ext4, needs};
use rustix::process::Signal;

use super::{CONTROL, DISK_BYTES, Rig, SETTINGS};
use crate::guest::{BUTTON, Machine, halt, power_off, signal, wait, wait_for};

/// More than an answer takes on an overloaded host, and less than the freeze lasts.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_resize_on_a_frozen_store_delays_no_other_request() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let image = store.file(DISK_BYTES, 0);
    let more =
        format!("{CONTROL}[[disk]]\nid = \"root\"\npath = \"{}\"\n[[scsi]]\n", image.display());
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    let rig = Rig::of(machine);
    let other = rig.machine.path("other.img");
    std::fs::File::create(&other).unwrap().set_len(DISK_BYTES).unwrap();
    store.freeze();
    let grow = format!("{{\"size_bytes\":{}}}", 2 * DISK_BYTES);
    let took = thread::scope(|scope| {
        let resize = scope.spawn(|| rig.post("/v1/disks/root/resize", &grow));
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        let status = rig.get("/v1/status").status;
        let body = format!("{{\"path\":\"{}\",\"bus\":\"virtio-scsi\"}}", other.display());
        let attached = rig.request("PUT", "/v1/disks/other", &body).status;
        let detached = rig.request("DELETE", "/v1/disks/other", "").status;
        let paused = rig.post("/v1/pause", "").status;
        let resumed = rig.post("/v1/resume", "").status;
        let took = start.elapsed();
        let is_hung = !resize.is_finished();
        // Before any assertion: a failed test must not leave a frozen file system.
        store.thaw();
        assert!(is_hung, "the store answered");
        assert_eq!((status, attached, detached, paused, resumed), (200, 201, 202, 200, 200));
        assert_eq!(resize.join().unwrap().status, 200);
        took
    });
    assert!(took < SOON, "{took:?}");
    assert_eq!(rig.end(), Some(0));
}

/// A guest that has powered off leaves a job behind that hangs in the host.
#[test]
fn the_end_does_not_wait_for_a_hung_request() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let image = store.file(DISK_BYTES, 0);
    let more = format!("{CONTROL}[[disk]]\nid = \"root\"\npath = \"{}\"\n", image.display());
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    let mut rig = Rig::of(machine);
    store.freeze();
    let grow = format!("{{\"size_bytes\":{}}}", 2 * DISK_BYTES);
    let request = format!(
        "POST /v1/disks/root/resize HTTP/1.1\r\nContent-Length: {}\r\n\r\n{grow}",
        grow.len()
    );
    let mut client = rig.connect();
    std::io::Write::write_all(&mut client, request.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(200));
    signal(&rig.child, Signal::TERM);
    // All but the thread that the kernel holds end; the socket's file is gone.
    let start = Instant::now();
    while rig.socket().exists() && start.elapsed() < SOON {
        thread::sleep(Duration::from_millis(5));
    }
    let is_removed = !rig.socket().exists();
    store.thaw();
    assert!(is_removed, "the end waits for the request");
    assert_eq!(wait(&mut rig.child).code(), Some(0));
}
