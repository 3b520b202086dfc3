//! `bulkhead check` of a disk whose storage accepts writes before it has space for them.

#![allow(clippy::unwrap_used)] // a failed helper fails its test

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use fixtures::host::{Loop, Mount};
use fixtures::needs;

const ERROR: &str =
    "`on_enospc = \"hold\"` does not work with cache mode \"writeback\" on thin storage";
const WARNING: &str = "cannot hold writes if this storage is thin";

/// The problems that `check` finds.
fn check(disk: &Path, keys: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = disk.display();
    let config = format!("[[disk]]\nid = \"data\"\npath = \"{path}\"\n{keys}");
    fs::write(folder.path().join("vm.toml"), config).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    let output = program.current_dir(folder.path()).args(["check", "vm.toml"]).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn hold_is_refused_where_the_page_cache_accepts_writes_without_space() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=16M");
    let file = mount.file(8 << 20);
    let device = Loop::new(&file);
    let hold = check(&device.0, "on_enospc = \"hold\"");
    assert!(hold.contains(ERROR) && hold.contains("no write can be held"), "{hold}");
    assert!(hold.contains("of the sparse file") && !hold.contains(WARNING), "{hold}");
    assert!(hold.contains("help: write `cache = \"none\"`, or `on_enospc = \"report\"`"), "{hold}");
    for keys in ["cache = \"none\"\non_enospc = \"hold\"", "on_enospc = \"report\"", ""] {
        let other = check(&device.0, keys);
        assert!(!other.contains(ERROR) && !other.contains(WARNING), "{keys}: {other}");
    }
    let file = check(&file, "on_enospc = \"hold\"");
    assert!(!file.contains(ERROR) && !file.contains(WARNING), "a file of a file system: {file}");
}

#[test]
fn a_device_whose_store_may_be_thin_is_warned_of() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=16M");
    let path = mount.path().join("full");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let device = Loop::new(&path);
    let hold = check(&device.0, "cache = \"writethrough\"\non_enospc = \"hold\"");
    assert!(hold.contains(WARNING) && !hold.contains("does not work with"), "{hold}");
    assert!(hold.contains("help: write `cache = \"directsync\"`"), "{hold}");
}
