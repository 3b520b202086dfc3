//! `bulkhead check`: the output and the exit code of the built program.
//!
//! The diagnostics are tested beside the code. Some tests need `/dev/kvm`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

use std::fs;
use std::path::Path;

use fixtures::{needs, scratch};
use snapbox::cmd::Command;
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

const GOOD: &str = r#"
[machine]
memory = "64MiB"

[kernel]
image = "vmlinuz"

[[disk]]
id = "root"
path = "root.img"

[[disk]]
id = "data-1"
path = "data.img"
cache = "writethrough"
readonly = true
"#;

const BAD: &str = r#"
[machine]
memory = 64
vcpu = 2

[kernel]
image = "vmlinux"

[[disk]]
id = "root"
path = "root.img"
cache = "unsafe"

[[disk]]
id = "root"
path = "images/data.img"
"#;

/// The report on [`BAD`].
const ALL_PROBLEMS: &str = r#"error: `memory` has no unit
 --> vm.toml:3:10
  |
3 | memory = 64
  |          ^^ a bare number
  |
  = help: write a unit, such as "64MiB"

error: unknown key `vcpu`
 --> vm.toml:4:1
  |
4 | vcpu = 2
  | ^^^^ did you mean `vcpus`?
  |
  = help: the keys of [machine] are: vcpus, memory, shutdown_grace

error: the kernel image `vmlinux` does not exist
 --> vm.toml:7:9
  |
7 | image = "vmlinux"
  |         ^^^^^^^^^ no such file
  |
  = help: a relative path starts at this file's directory

warning: `cache = "unsafe"` ignores the guest's flushes
  --> vm.toml:12:9
   |
12 | cache = "unsafe"
   |         ^^^^^^^^ a host crash loses data that the guest has flushed
   |
   = help: write "writeback" for a disk whose data matters

error: the id `root` is used twice
  --> vm.toml:15:6
   |
10 | id = "root"
   |      ------ first use
...
15 | id = "root"
   |      ^^^^^^ second use
   |
   = help: give each its own `id`

error: the disk image `images/data.img` does not exist
  --> vm.toml:16:8
   |
16 | path = "images/data.img"
   |        ^^^^^^^^^^^^^^^^^ the directory `images` does not exist
   |
   = help: a relative path starts at this file's directory; or create it with `mkdir -p images`

error: vm.toml has 5 errors and 1 warning
"#;

/// A directory with a kernel, two disks and the given configuration.
fn folder(config: &str) -> TempDir {
    let folder = TempDir::new_in(scratch()).unwrap();
    let mut kernel = vec![0; 0x400];
    kernel[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    fs::write(folder.path().join("vmlinuz"), kernel).unwrap();
    for (name, length) in [("root.img", 10 << 30), ("data.img", 3 << 19)] {
        fs::File::create(folder.path().join(name)).unwrap().set_len(length).unwrap();
    }
    fs::write(folder.path().join("vm.toml"), config).unwrap();
    folder
}

fn bulkhead(folder: &TempDir) -> Command {
    Command::new(env!("CARGO_BIN_EXE_bulkhead")).current_dir(folder.path())
}

#[test]
fn a_valid_machine_is_shown() {
    if !needs::kvm() {
        return;
    }
    let run = bulkhead(&folder(GOOD)).args(["check", "vm.toml"]).assert();
    run.code(0).stderr_eq("").stdout_eq(str![[r#"
vm.toml is ready to run

  vcpus      1
  memory     64 MiB
  kernel     vmlinuz  bzImage
  cmdline    console=ttyS0
  disk       root       10 GiB  writeback     rw  root.img
  disk       data-1    1.5 MiB  writethrough  ro  data.img
  console    this terminal

"#]]);
}

#[test]
fn the_memory_of_a_recording_is_shown() {
    let config = "[disk]\nid = \"data\"\npath = \"data.img\"\nqueues = 2\nrecord = \"data.log\"\n";
    let folder = folder(config);
    let run = bulkhead(&folder).args(["check", "vm.toml"]).assert().code(0).stderr_eq("");
    run.stdout_eq("...\n  record     data  [..]data.log, up to 33 MiB of memory\n");
}

#[test]
fn a_valid_machine_as_json() {
    if !needs::kvm() {
        return;
    }
    let config = GOOD.split("[[disk]]").next().unwrap();
    let run = bulkhead(&folder(config)).args(["check", "--json", "vm.toml"]).assert();
    run.code(0).stderr_eq("").stdout_eq(str![[r#"
{
  "diagnostics": [],
  "machine": {
    "console": {
      "mode": "stdio",
      "path": null
    },
    "control": null,
    "disks": [],
    "kernel": {
      "cmdline": "console=ttyS0",
      "format": "bzImage",
      "image": "vmlinuz",
      "initramfs": null
    },
    "memory_bytes": 67108864,
    "nets": [],
    "scsi": [],
    "shutdown_grace_ms": 30000,
    "vcpus": 1
  },
  "needs": {
    "descriptors": {
      "available": [..],
      "needed": [..]
    },
    "threads": {
      "available": [..],
      "needed": [..]
    }
  },
  "ok": true
}

"#]]);
}

/// The disks of [`GOOD`].
const DISKS_AS_JSON: &str = r#"[
  {
    "base": null,
    "block_size": null,
    "bus": "virtio-blk",
    "cache": "writeback",
    "copy_memory_bytes": 4194304,
    "create": false,
    "detect_zeroes": "off",
    "discard": "unmap",
    "engine": "auto",
    "ephemeral": false,
    "ephemeral_limit_bytes": null,
    "format": "auto",
    "hold_deadline_ms": null,
    "id": "root",
    "lock": "on",
    "on_enospc": "report",
    "path": "root.img",
    "queues": 1,
    "readonly": false,
    "record": null,
    "record_limit_bytes": null,
    "scsi": null,
    "serial": "root",
    "size_bytes": 10737418240,
    "soft_limit_percent": null,
    "stable_copies": "auto"
  },
  {
    "base": null,
    "block_size": null,
    "bus": "virtio-blk",
    "cache": "writethrough",
    "copy_memory_bytes": 4194304,
    "create": false,
    "detect_zeroes": "off",
    "discard": "unmap",
    "engine": "auto",
    "ephemeral": false,
    "ephemeral_limit_bytes": null,
    "format": "auto",
    "hold_deadline_ms": null,
    "id": "data-1",
    "lock": "on",
    "on_enospc": "report",
    "path": "data.img",
    "queues": 1,
    "readonly": true,
    "record": null,
    "record_limit_bytes": null,
    "scsi": null,
    "serial": "data-1",
    "size_bytes": 1572864,
    "soft_limit_percent": null,
    "stable_copies": "auto"
  }
]"#;

#[test]
fn valid_disks_as_json() {
    if !needs::kvm() {
        return;
    }
    let output = bulkhead(&folder(GOOD)).args(["check", "--json", "vm.toml"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_data_eq!(format!("{:#}", json["machine"]["disks"]), DISKS_AS_JSON);
}

#[test]
fn durability_is_explained() {
    if !needs::kvm() {
        return;
    }
    let mut config = GOOD.to_owned();
    for cache in ["writethrough", "unsafe"] {
        let image = format!("{cache}.img");
        config += &format!("[[disk]]\nid = \"{cache}\"\npath = \"{image}\"\ncache = \"{cache}\"\n");
    }
    let folder = folder(&config);
    for image in ["writethrough.img", "unsafe.img"] {
        fs::File::create(folder.path().join(image)).unwrap().set_len(1 << 20).unwrap();
    }
    let run = bulkhead(&folder).args(["check", "--explain", "vm.toml"]).assert();
    run.code(0).stdout_eq(str![[r#"
vm.toml is ready to run

  vcpus      1
  memory     64 MiB
  kernel     vmlinuz  bzImage
  cmdline    console=ttyS0
  disk       root             10 GiB  writeback     rw  root.img
  disk       data-1          1.5 MiB  writethrough  ro  data.img
  disk       writethrough      1 MiB  writethrough  rw  writethrough.img
  disk       unsafe            1 MiB  unsafe        rw  unsafe.img
  console    this terminal

  disk root, cache mode writeback
    a completed write   is in the host's page cache; it survives the exit or a crash of bulkhead,
                        but not a crash of the host
    a flush             makes every write completed before it durable (fdatasync); after a failed
                        flush every later flush fails too, because the host may have dropped the
                        data
    the guest sees      a write cache, and flushes it as needed; it may disable the cache, which
                        flushes it: every write submitted afterwards is on stable storage when it
                        completes (a write in flight meanwhile may not be)
    a power cut loses   only writes that no completed flush followed, in any order

  disk data-1, cache mode writethrough
    the guest sees      a read-only disk: no write can be lost

  disk writethrough, cache mode writethrough
    a completed write   is on stable storage, through the host's page cache (RWF_DSYNC)
    a flush             has nothing to do: every completed write is on stable storage
    the guest sees      no write cache, so there is nothing to flush
    a power cut loses   no completed write

  disk unsafe, cache mode unsafe
    UNSAFE              use it only for data that can be recreated
    a completed write   is in the host's page cache; it survives the exit or a crash of bulkhead,
                        but not a crash of the host
    a flush             completes at once and has no effect
    the guest sees      a write cache that it can flush, although flushes have no effect
    a power cut loses   any write since the guest started, flushed or not, and so possibly the
                        whole disk

"#]]);
}

#[test]
fn all_problems_are_shown_in_one_run() {
    if !needs::kvm() {
        return;
    }
    let run = bulkhead(&folder(BAD)).args(["check", "vm.toml"]).assert();
    run.code(2).stdout_eq("").stderr_eq(ALL_PROBLEMS);
}

#[test]
fn problems_as_json() {
    let folder = folder("[machine]\nmemory = 1GiB\n");
    let run = bulkhead(&folder).args(["check", "--json", "vm.toml"]).assert();
    run.code(2).stderr_eq("").stdout_eq(str![[r#"
{
  "diagnostics": [
    {
      "file": "vm.toml",
      "help": "write /"1GiB/"",
      "message": "not valid TOML: string values must be quoted",
      "primary": {
        "column": 10,
        "end_byte": 23,
        "label": "needs quotes",
        "line": 2,
        "start_byte": 19
      },
      "related": null,
      "severity": "error"
    }
  ],
  "machine": null,
  "needs": null,
  "ok": false
}

"#]]);
}

#[test]
fn run_prints_the_same_report() {
    let folder = folder("[machine]\nmemory = 1GiB\n");
    for command in ["check", "run"] {
        let run = bulkhead(&folder).args([command, "vm.toml"]).assert();
        run.code(2).stdout_eq("").stderr_eq(str![[r#"
error: not valid TOML: string values must be quoted
 --> vm.toml:2:10
  |
2 | memory = 1GiB
  |          ^^^^ needs quotes
  |
  = help: write "1GiB"


"#]]);
    }
}

#[test]
fn unreadable_configuration_files() {
    let folder = folder("");
    fs::write(folder.path().join("binary.toml"), b"a = \"\xff\"").unwrap();
    let reports = ["absent.toml", ".", "binary.toml", "/dev/zero"].map(|path| {
        let output = bulkhead(&folder).args(["check", path]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{path}");
        String::from_utf8(output.stderr).unwrap()
    });
    assert_data_eq!(
        reports.concat(),
        str![[r#"
error: cannot read the configuration: no such file
--> absent.toml

error: cannot read the configuration: it is a directory
--> .
 = help: name a .toml file in it

error: cannot read the configuration: invalid UTF-8 at byte 5
--> binary.toml
 = help: save the file as UTF-8 text

error: cannot read the configuration: it is larger than 1 MiB
--> /dev/zero


"#]]
    );
}

#[test]
fn paths_are_relative_to_the_file() {
    if !needs::kvm() {
        return;
    }
    let folder = folder(GOOD);
    let path = folder.path().join("vm.toml");
    bulkhead(&folder).current_dir(Path::new("/")).arg("check").arg(path).assert().code(0);
}

#[test]
fn help() {
    let folder = folder("");
    let run = bulkhead(&folder).arg("--help").env("COLUMNS", "100").assert();
    run.code(0).stdout_eq(str![[r#"
Runs Linux guests on KVM, with disks that tell the truth about durability

Usage: bulkhead [OPTIONS] <COMMAND>

Commands:
  run    Run a machine until its guest stops
  serve  Serve a disk to the guest of another monitor, as a vhost-user-blk back end
  check  Check a configuration against this host and show the machine
  ctl    Query or control a running machine
  disk   Inspect a disk, whether or not a machine uses it, or prove its flushes
  layer  Make layers: disks whose changes go to a file of their own over a base
  crash  Explore what power cuts could have left of a recorded disk

Options:
  -v, --verbose...         Log more: -v for info, -vv for debug, -vvv for trace
      --log-level <LEVEL>  Log to standard error at LEVEL: off, error, warn, info, debug or trace
                           [default: warn]
  -h, --help               Print help
  -V, --version            Print version

Examples:
  bulkhead check vm.toml            show the machine, or its problems
  bulkhead run vm.toml              run it, with its console on this terminal
  bulkhead run -v vm.toml 2>vm.log  the same, with the log in a file
  bulkhead ctl vm.toml status       show its status (needs a [control] socket)

The shortest configuration:
  [machine]
  memory = "1GiB"
  [kernel]
  image = "vmlinuz"

"#]]);
}

#[test]
fn help_of_run() {
    let folder = folder("");
    let run = bulkhead(&folder).args(["run", "--help"]).env("COLUMNS", "100").assert();
    run.code(0).stdout_eq(str![[r#"
Run a machine until its guest stops

Usage: bulkhead run [OPTIONS] <CONFIG>

Arguments:
  <CONFIG>  The configuration, a TOML file

Options:
      --core-dumps         Allow core dumps, which never have guest memory
      --record <FOLDER>    Leave the images as they are: record the disks, and keep their changes,
                           in this folder
  -v, --verbose...         Log more: -v for info, -vv for debug, -vvv for trace
      --log-level <LEVEL>  Log to standard error at LEVEL: off, error, warn, info, debug or trace
                           [default: warn]
  -h, --help               Print help

Exit codes:
   0  the guest powered off
   1  the host failed while it ran
   2  the command line or the configuration is wrong
  10  the guest rebooted
  11  the guest's kernel panicked
  12  the guest stopped on a triple fault
  13  the guest did not power off within `shutdown_grace` and was stopped

"#]]);
    bulkhead(&folder).arg("check").assert().code(2);
}
