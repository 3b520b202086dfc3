//! The lock on an image after SIGKILL, while the kernel still has a write of the dead process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use driver::vhost_user::Monitor;
use fixtures::host::{Loop, sh};
use fixtures::{Ext4, OwnedChild, needs, wait_for};
use lab::ServeProcess;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const KEYS: &str = "cache = \"none\"\nengine = \"io_uring\"\n";

/// Writes in flight on a loop device.
fn writes_in_flight(device: &Loop) -> u32 {
    let name = device.0.file_name().unwrap().to_str().unwrap();
    let inflight = fs::read_to_string(format!("/sys/block/{name}/inflight")).unwrap();
    inflight.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Starts a second process with `keys` on the disk of `served`, which must be refused.
fn check_refused(served: &ServeProcess, disk: &Path, keys: &str) {
    let config = format!("[disk]\nid = \"data\"\npath = \"{}\"\n{KEYS}{keys}", disk.display());
    fs::write(served.folder().join("second.toml"), config).unwrap();
    let path = served.folder().join("second.log");
    let log = File::create(&path).unwrap();
    let second = served
        .command(&["serve", "--socket", "second.sock", "second.toml"])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let mut second = OwnedChild(second.unwrap());
    let output = || fs::read_to_string(&path).unwrap();
    let ended = wait_for(|| match second.0.try_wait().unwrap() {
        Some(status) => Some(Some(status)),
        None => output().contains("serving ").then_some(None),
    });
    let log = output();
    let status =
        ended.flatten().unwrap_or_else(|| panic!("the disk is opened twice: {keys} {log}"));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("in use by another process"), "{log}");
}

/// Kills the service of `disk`, which is on `device`, with a write in flight on the frozen `store`.
fn check_lock_outlives_process(store: &mut Ext4, device: &Loop, disk: &Path) {
    let mut served = ServeProcess::start_at(disk, KEYS);
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    monitor.write(0, 8, &[1; 4096]);
    store.freeze();
    let write = monitor.offer_write(0, 1, 8, &[2; 4096]);
    monitor.publish(0);
    wait_for(|| (writes_in_flight(device) > 0).then_some(())).expect("the write is in flight");
    served.kill();
    assert!(writes_in_flight(device) > 0, "the write outlives the process");
    // Byte locks alone refuse a reader of a block device: it does not open it with O_EXCL.
    for keys in ["", "readonly = true\n"] {
        check_refused(&served, disk, keys);
    }
    assert!(writes_in_flight(device) > 0, "the write was in flight during the refusal");
    store.thaw();
    wait_for(|| (writes_in_flight(device) == 0).then_some(())).expect("the write completes");
    served.restart();
    monitor.reconnect(&served.socket());
    assert_eq!(monitor.wait_used(0).id, u32::from(write.head));
    assert_eq!(monitor.status(&write), 0);
    assert_eq!(monitor.read(0, 8, 4096), [2; 4096]);
    drop(monitor);
    served.terminate();
}

#[test]
fn killed_service_keeps_a_device_locked_until_its_write_completes() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let device = Loop::new(&store.file(16 * MIB, 0));
    check_lock_outlives_process(&mut store, &device, &device.0);
}

/// A file system on a loop device.
struct Nested<'d> {
    mount: TempDir,
    _device: &'d Loop,
}

impl<'d> Nested<'d> {
    fn new(device: &'d Loop) -> Self {
        let mount = TempDir::new_in(fixtures::scratch()).unwrap();
        let [device_path, at] =
            [device.0.as_path(), mount.path()].map(|path| path.to_str().unwrap());
        sh("mkfs.ext4", &["-q", "-F", "-m", "0", device_path]);
        sh("mount", &["-o", "noatime", device_path, at]);
        Self { mount, _device: device }
    }

    /// A file without holes, so that a write needs no new block.
    fn image(&self) -> PathBuf {
        let image = self.mount.path().join("disk.img");
        fs::write(&image, vec![0; 1 << 20]).unwrap();
        File::open(&image).unwrap().sync_all().unwrap();
        image
    }
}

impl Drop for Nested<'_> {
    fn drop(&mut self) {
        sh("umount", &["--lazy", self.mount.path().to_str().unwrap()]);
    }
}

#[test]
fn killed_service_keeps_an_image_locked_until_its_write_completes() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let device = Loop::new(&store.file(32 * MIB, 0));
    let nested = Nested::new(&device);
    let image = nested.image();
    check_lock_outlives_process(&mut store, &device, &image);
}
