//! An image of another format: refused by a start, with the way to convert it.

use std::fs;

use driver::vhost_user::Monitor;
use lab::ServeProcess;

const MIB: u64 = 1 << 20;
const QCOW2: &[u8] = b"QFI\xfb\0\0\0\x03";

/// An image of 1 MiB with the signature of qcow2.
fn foreign_image() -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    image[..QCOW2.len()].copy_from_slice(QCOW2);
    image
}

#[test]
fn foreign_image_is_refused_and_unchanged() {
    let served = ServeProcess::start(MIB, "");
    let other = served.folder().join("other.qcow2");
    fs::write(&other, foreign_image()).unwrap();
    let run = |keys: &str| {
        let config = format!("[disk]\nid = \"a\"\npath = \"other.qcow2\"\n{keys}");
        fs::write(served.folder().join("other.toml"), config).unwrap();
        let arguments = ["serve", "--socket", "other.sock", "other.toml"];
        let run = served.command(&arguments).output().unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    for keys in ["", "readonly = true\n", "cache = \"unsafe\"\n"] {
        let (code, log) = run(keys);
        assert_eq!(code, Some(1), "{log}");
        let remedy = "`qemu-img convert -f qcow2 -O raw other.qcow2 other.qcow2.raw`";
        assert!(log.contains("not a raw image but qcow2") && log.contains(remedy), "{log}");
    }
    assert_eq!(fs::read(&other).unwrap(), foreign_image());
}

/// A guest writes the signature to its own disk, and starts again.
#[test]
fn guest_is_not_locked_out_by_its_own_bytes() {
    let mut served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    monitor.write(0, 0, &foreign_image()[..4096]);
    drop(monitor);
    served.terminate();
    served.restart();
    served.wait_log("has the signature of qcow2, and is served as a raw disk", 1);
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    assert_eq!(monitor.read(0, 0, 4096), foreign_image()[..4096]);
}
