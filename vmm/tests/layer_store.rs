//! Layers over a base in memory, and what the commands for disks say about layers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

use std::fs::{self, File};
use std::path::PathBuf;

use fixtures::tiny_guest::{self, CODE};
use fixtures::{needs, scratch};
use serde_json::Value;
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;
use tempfile::TempDir;

const CONFIG: &str = r#"
[machine]
memory = "64MiB"
[kernel]
image = "vmlinuz"
[[disk]]
id = "root"
path = "vm.layer"
base = "BASE"
"#;

/// A base in memory, and a layer on a disk over a layer in memory over it.
struct Layers {
    /// `/dev/shm` is a tmpfs everywhere.
    memory: TempDir,
    folder: TempDir,
}

impl Layers {
    fn new() -> Self {
        let layers = Self {
            memory: TempDir::new_in("/dev/shm").unwrap(),
            folder: TempDir::new_in(scratch()).unwrap(),
        };
        File::create(layers.base("base.img")).unwrap().set_len(10 << 30).unwrap();
        block::create_layer(&layers.base("below"), &layers.base("base.img"), None).unwrap();
        let layer = layers.folder.path().join("vm.layer");
        block::create_layer(&layer, &layers.base("below"), None).unwrap();
        let config = CONFIG.replace("BASE", layers.base("below").to_str().unwrap());
        fs::write(layers.folder.path().join("vm.toml"), config).unwrap();
        layers
    }

    fn base(&self, name: &str) -> PathBuf {
        self.memory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> OutputAssert {
        let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead"));
        program.current_dir(self.folder.path()).args(arguments).assert()
    }

    /// The standard output with fixed names of the folder in memory.
    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        stdout.replace(self.memory.path().to_str().unwrap(), "/shm")
    }
}

#[test]
fn a_base_in_memory_is_lost_at_a_power_cut() {
    let layers = Layers::new();
    // Without a kernel the machine has an error, but the disks are checked.
    let checked = layers.run(&["check", "vm.toml", "--json"]);
    let checked: Value = serde_json::from_slice(&checked.get_output().stdout).unwrap();
    let labels = checked["diagnostics"].as_array().unwrap().iter();
    let labels = labels.filter_map(|found| found["primary"]["label"].as_str());
    let lost: Vec<_> = labels.filter(|label| label.contains("lost at a power cut")).collect();
    for base in ["below", "base.img"].map(|name| layers.base(name)) {
        let text = format!(
            "the disk is lost at a power cut, with its base {}: /dev/shm is a tmpfs, in memory: a \
             power failure empties it",
            base.display()
        );
        assert!(lost.contains(&text.as_str()), "{lost:#?}");
    }
    assert_eq!(lost.len(), 2, "{lost:#?}");
}

#[test]
fn the_file_of_a_layer_is_not_taken_for_the_disk() {
    let layers = Layers::new();
    let inspected = layers.stdout(&["disk", "inspect", "vm.layer"]);
    let lines: Vec<_> = inspected.lines().filter(|line| !line.contains("  size  ")).collect();
    for expected in [
        "  layer         a disk of 10 GiB over /shm/below, /shm/base.img; see `bulkhead layer info \
         vm.layer`",
        "  its base      /shm/below is lost at a power cut: /dev/shm is a tmpfs, in memory: a power \
         failure empties it",
    ] {
        assert!(lines.contains(&expected), "{inspected}");
    }
    assert!(lines[0].starts_with("vm.layer: file of a layer, "), "{inspected}");
    let json: Value =
        serde_json::from_str(&layers.stdout(&["disk", "inspect", "vm.layer", "--json"])).unwrap();
    let paths = json["layer"]["levels"].as_array().unwrap().iter().map(|level| &level["path"]);
    assert_eq!(paths.collect::<Vec<_>>(), ["vm.layer", "/shm/below", "/shm/base.img"]);
    assert_eq!(json["layer"]["problems"].as_array().unwrap().len(), 2, "{json:#}");
    layers.run(&["disk", "map", "vm.layer"]).code(1).stderr_eq(str![[r#"
error: vm.layer is the file of a layer, not the disk; `bulkhead layer map vm.layer` shows the disk

"#]]);
    layers.run(&["disk", "map", layers.base("base.img").to_str().unwrap()]).success();
}

const EPHEMERAL: &str = r#"
[machine]
memory = "32MiB"
[kernel]
image = "kernel"
[[disk]]
id = "root"
base = "base.img"
ephemeral = true
ephemeral_limit = "2MiB"
[[disk]]
id = "data"
base = "base.img"
ephemeral = "changes"
"#;

#[test]
fn an_ephemeral_disk_promises_nothing() {
    if !needs::kvm() {
        return;
    }
    let folder = TempDir::new_in(scratch()).unwrap();
    fs::write(folder.path().join("kernel"), tiny_guest::elf(&tiny_guest::halt(), CODE)).unwrap();
    File::create(folder.path().join("base.img")).unwrap().set_len(1 << 30).unwrap();
    fs::create_dir(folder.path().join("changes")).unwrap();
    fs::write(folder.path().join("vm.toml"), EPHEMERAL).unwrap();
    let run = |arguments: &[&str]| {
        let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead"));
        program.current_dir(folder.path()).args(arguments).assert()
    };
    run(&["check", "--explain", "vm.toml"]).code(0).stdout_eq(str![[r#"
vm.toml is ready to run

  vcpus      1
  memory     32 MiB
  kernel     kernel  ELF
  cmdline    console=ttyS0
  disk       root      1 GiB  ephemeral     rw  base.img  changes in memory, 2 MiB at most
  disk       data      1 GiB  ephemeral     rw  base.img  changes in changes
  console    this terminal

  disk root, ephemeral
    a completed write   is in the memory of the host
    a flush             completes at once and has no effect
    the guest sees      a write cache that it can flush, although flushes have no effect
    bulkhead's end      loses all changes, also if it is killed: the next start begins with the
                        base again
    its changes are     limited to 2 MiB; a write that exceeds it fails (ENOSPC)

  disk data, ephemeral
    a completed write   is in a file without a name in changes, or in the host's page cache
    a flush             completes at once and has no effect
    the guest sees      a write cache that it can flush, although flushes have no effect
    bulkhead's end      loses all changes, also if it is killed: the next start begins with the
                        base again

"#]]);
    run(&["disk", "inspect", "root", "--config", "vm.toml"]).code(2).stderr_eq(str![[r#"
error: the disk `root` is ephemeral: it exists only while the machine runs
--> vm.toml
 = help: name its base, `base.img`


"#]]);
}
