//! A service of a thin device: one whose store has less space than the device.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use driver::vhost_user::Monitor;
use fixtures::host::{Loop, Mount};
use fixtures::{OwnedChild, needs, wait_for};
use lab::ServeProcess;

const MIB: u64 = 1 << 20;
const FLUSH: u32 = 4;

/// A loop device of 8 MiB over a sparse file, with space for 1 MiB.
fn thin_device() -> (Mount, Loop) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    (mount, device)
}

/// Whether a flush succeeds.
fn flush(monitor: &mut Monitor) -> bool {
    let flush = monitor.offer_write(0, FLUSH, 0, &[]);
    monitor.publish(0);
    monitor.wait_used(0);
    monitor.status(&flush) == 0
}

fn ctl(served: &ServeProcess, command: &str) -> String {
    let output = served.command(&["ctl", "c.sock", command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn lost_writes_are_reported_until_the_disk_is_reopened() {
    if !needs::root() {
        return;
    }
    let (mount, device) = thin_device();
    let keys = "cache = \"writeback\"\n[control]\nsocket = \"c.sock\"";
    let mut served = ServeProcess::start_at(&device.0, keys);
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    for at in 0..256 {
        monitor.write(0, at * 32, &[1; 16 << 10]);
    }
    assert!(!flush(&mut monitor), "the store is full");
    served.wait_log("write-back failed: acknowledged writes were lost, or may be", 1);
    let status = ctl(&served, "status");
    assert!(
        status.contains("write-back failed ") && status.contains("restart the machine"),
        "{status}"
    );
    let is_event = || ctl(&served, "events").contains("writes lost").then_some(());
    wait_for(is_event).expect("an event");

    mount.grow("32M");
    assert!(!flush(&mut monitor), "the loss is remembered");
    // The watch looks every second.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(ctl(&served, "events").matches("writes lost").count(), 1);
    drop(monitor);
    served.kill();
    served.restart();
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    monitor.write(0, 0, &[2; 16 << 10]);
    assert!(flush(&mut monitor), "the disk was reopened");
    assert!(!ctl(&served, "events").contains("writes lost"));
    served.terminate();
}

#[test]
fn a_start_that_could_hold_no_write_is_refused() {
    if !needs::root() {
        return;
    }
    let (_mount, device) = thin_device();
    let served = ServeProcess::start(MIB, "");
    let config =
        format!("[disk]\nid = \"a\"\npath = \"{}\"\non_enospc = \"hold\"\n", device.0.display());
    fs::write(served.folder().join("other.toml"), config).unwrap();
    let log = served.folder().join("other.log");
    let mut command = served.command(&["serve", "--socket", "other.sock", "other.toml"]);
    let mut run = OwnedChild(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
    let status = wait_for(|| run.0.try_wait().unwrap()).expect("it ends");
    let log = fs::read_to_string(log).unwrap();
    assert!(!status.success(), "{log}");
    assert!(log.contains("on_enospc = \"hold\" holds no write in cache mode writeback"), "{log}");
    assert!(log.contains("use cache = \"none\""), "{log}");
}
