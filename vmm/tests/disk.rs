//! `bulkhead disk`: the built program on a sparse image.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use fixtures::host::Loop;
use fixtures::{Formatted, needs};
use serde_json::{Value, json};
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

const CONFIG: &str = r#"
[machine]
memory = "64MiB"
[kernel]
image = "missing-kernel"
[[disk]]
id = "root"
path = "root.img"
cache = "none"
"#;

/// A directory with a configuration and an image of 64 MiB: data from 8 to 10 MiB, and zeroes in
/// the second half of it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vm.toml"), CONFIG).unwrap();
    let image = File::create(folder.path().join("root.img")).unwrap();
    image.set_len(64 * MIB).unwrap();
    image.write_all_at(&vec![7; 1 << 20], 8 * MIB).unwrap();
    image.write_all_at(&vec![0; 1 << 20], 9 * MIB).unwrap();
    image.sync_all().unwrap();
    folder
}

fn disk(folder: &TempDir, arguments: &[&str]) -> OutputAssert {
    let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead")).current_dir(folder.path());
    program.arg("disk").args(arguments).assert()
}

fn parsed(output: &OutputAssert) -> Value {
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

#[test]
fn a_disk_is_inspected_by_path_and_by_id() {
    let folder = folder();
    let by_path = parsed(&disk(&folder, &["inspect", "root.img", "--json"]).success());
    assert_eq!(by_path["size_bytes"], 64 * MIB);
    assert_eq!(by_path["data"]["bytes"], 2 * MIB);
    assert_eq!(by_path["holes"]["bytes"], 62 * MIB);
    assert_eq!(by_path["lock"]["state"], "free");
    assert_eq!(by_path["zero_bytes"], Value::Null);
    assert_eq!(by_path["cache"], Value::Null);
    assert!(by_path["allocated_bytes"].as_u64().unwrap() >= 2 * MIB, "{by_path}");

    // The machine of this configuration cannot run here, which does not matter.
    let by_id = disk(&folder, &["inspect", "root", "--config", "vm.toml", "--scan", "--json"]);
    let by_id = parsed(&by_id.success());
    assert_eq!(by_id["zero_bytes"], MIB);
    assert_eq!(by_id["cache"], "none");
    assert_eq!(by_id["id"], "root");
}

#[test]
fn an_inspection_names_the_format() {
    let folder = folder();
    let raw = parsed(&disk(&folder, &["inspect", "root.img", "--json"]).success());
    assert_eq!(raw["format"], json!({ "signature": null, "is_raw": true }));
    let format_row = |bytes: &[u8]| {
        let image = File::options().write(true).open(folder.path().join("root.img")).unwrap();
        image.write_all_at(bytes, 0).unwrap();
        let json = parsed(&disk(&folder, &["inspect", "root.img", "--json"]).success());
        let text = disk(&folder, &["inspect", "root.img"]).success().get_output().stdout.clone();
        let text = String::from_utf8(text).unwrap();
        let row = text.lines().find(|line| line.starts_with("  format ")).unwrap().to_owned();
        (json["format"].clone(), row)
    };
    let (json, row) = format_row(b"LUKS\xba\xbe\0\x02");
    assert_eq!(json, json!({ "signature": "LUKS", "is_raw": true }));
    assert_eq!(row, "  format        raw, with the signature of LUKS");
    let (json, row) = format_row(b"QFI\xfb\0\0\0\x03");
    assert_eq!(json, json!({ "signature": "qcow2", "is_raw": false }));
    let remedy = "`qemu-img convert -f qcow2 -O raw root.img root.img.raw`";
    assert!(row.starts_with("  format        qcow2, not raw: ") && row.contains(remedy), "{row}");
}

#[test]
fn an_inspection_shows_the_storage_below() {
    let folder = folder();
    let json = parsed(&disk(&folder, &["inspect", "root.img", "--json"]).success());
    let stack = &json["stack"];
    assert_eq!(stack["storeys"]["kind"], "file system", "{stack}");
    assert!(stack["storeys"]["facts"]["type"].is_string(), "{stack}");
    assert!(stack["stable_copies"].is_object(), "{stack}");
    let text = disk(&folder, &["inspect", "root.img"]).success().get_output().stdout.clone();
    let text = String::from_utf8(text).unwrap();
    let name = stack["storeys"]["name"].as_str().unwrap();
    assert!(text.contains(&format!("\n  {name}: ")), "{text}");
}

/// A loop device whose queue is set to write through.
#[test]
fn an_inspection_warns_of_a_lie() {
    if !needs::root() {
        return;
    }
    let folder = folder();
    let device = Loop::new(&folder.path().join("root.img"));
    let path = device.0.to_str().unwrap();
    let honest = parsed(&disk(&folder, &["inspect", path, "--json"]).success());
    assert_eq!(honest["stack"]["storeys"]["problems"], json!([]));
    assert_eq!(honest["stack"]["storeys"]["below"][0]["kind"], "file system");

    let queue = device.write_through();
    let lie = parsed(&disk(&folder, &["inspect", path, "--json"]).success());
    let text = disk(&folder, &["inspect", path]).success().get_output().stdout.clone();
    assert_eq!(lie["stack"]["flush"], "not kept");
    let [problem] = &lie["stack"]["storeys"]["problems"].as_array().unwrap()[..] else {
        panic!("{lie}");
    };
    assert_eq!(problem["remedy"], format!("echo \"write back\" >{}", queue.0.display()));
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("NOT kept: see {path}")), "{text}");
}

/// An XFS that reports preallocation as its preferred I/O size (`largeio`, xfs(5)).
#[test]
fn an_inspection_names_limits_that_are_not_offered() {
    if !needs::root() {
        return;
    }
    let honest = folder();
    let json = parsed(&disk(&honest, &["inspect", "root.img", "--json"]).success());
    assert_eq!(json["not_offered"], json!([]));
    for (allocation, is_plausible) in [("32m", false), ("8m", true)] {
        let options = format!("largeio,allocsize={allocation}");
        let store = Formatted::new(&["mkfs.xfs", "-q"], &options);
        let path = store.file("disk");
        File::options().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
        let path = path.to_str().unwrap();
        let json = parsed(&disk(&honest, &["inspect", path, "--json"]).success());
        let text = disk(&honest, &["inspect", path]).success().get_output().stdout.clone();
        let text = String::from_utf8(text).unwrap();
        let dropped = "optimal I/O size of 33554432 bytes: larger than 16777216 bytes";
        if is_plausible {
            assert_eq!(
                (&json["optimal_io_bytes"], &json["not_offered"]),
                (&json!(8 * MIB), &json!([]))
            );
        } else {
            assert_eq!(
                (&json["optimal_io_bytes"], &json["not_offered"]),
                (&json!(0), &json!([dropped]))
            );
        }
        assert_eq!(text.contains(&format!("  not offered   {dropped}\n")), !is_plausible, "{text}");
    }
}

#[test]
fn a_map_shows_data_and_holes() {
    let folder = folder();
    let map = parsed(&disk(&folder, &["map", "root.img", "--json"]).success());
    let extents = map["extents"].as_array().unwrap();
    let summary = |extent: &Value| {
        let number = |key: &str| extent[key].as_u64().unwrap() / MIB;
        (number("start"), number("bytes"), extent["data"].as_bool().unwrap())
    };
    let extents: Vec<_> = extents.iter().map(summary).collect();
    assert_eq!(extents, [(0, 8, false), (8, 2, true), (10, 54, false)]);
    disk(&folder, &["map", "root.img", "--width", "30"]).success().stdout_eq(str![[r#"
           0  ················
       8 MiB  ████············
      16 MiB  ················
      24 MiB  ················
      32 MiB  ················
      40 MiB  ················
      48 MiB  ················
      56 MiB  ················

  2 MiB of 64 MiB hold data (3.1 %); a block is 512 KiB: · no data, █ only data

"#]]);
}

#[test]
fn missing_and_unsuitable_disks_are_errors() {
    let folder = folder();
    disk(&folder, &["inspect", "rot"]).code(1).stderr_eq(str![[r#"
error: there is no disk rot; to name a disk by its id, add --config CONFIG

"#]]);
    disk(&folder, &["map", "rot", "--config", "vm.toml"]).code(2).stderr_eq(str![[r#"
error: there is no disk `rot`
--> vm.toml
 = help: its disks are `root`


"#]]);
    disk(&folder, &["inspect", "."]).code(1).stderr_eq(str![[r#"
error: .: a disk is a regular file or a block device; this is neither

"#]]);
}

/// `/dev/shm` is a tmpfs everywhere.
#[test]
fn a_disk_in_memory_is_not_called_durable() {
    let disk = "[disk]\nid = \"a\"\npath = \"root.img\"\ncache = \"writethrough\"\n";
    let folder = TempDir::new_in("/dev/shm").unwrap();
    File::create(folder.path().join("root.img")).unwrap().set_len(10 << 30).unwrap();
    fs::write(folder.path().join("disk.toml"), disk).unwrap();
    let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead")).current_dir(folder.path());
    let run = program.args(["check", "--explain", "disk.toml"]).assert().code(0);
    run
        .stderr_eq(str![[r#"
warning: the disk image `root.img` is not safe on its storage
 --> disk.toml:3:8
  |
3 | path = "root.img"
  |        ^^^^^^^^^^ flushed data may be lost at a power cut: /dev/shm is a tmpfs, in memory: a power failure empties it
  |
  = help: copy the image to a file system on a disk


"#]])
        .stdout_eq(str![[r#"
disk.toml is ready to serve

  disk       a     10 GiB  writethrough  rw  root.img
  queues     4

  disk a, cache mode writethrough
    a completed write   can be lost at a power cut
    a flush             is executed (fdatasync), but its storage does not keep it
    a power cut loses   any write, flushed or not
    its storage         it does not keep flushed data: /dev/shm is a tmpfs, in memory: a power
                        failure empties it

"#]]);
}
