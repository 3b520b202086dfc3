//! Commits of frozen layers below the disks of a running machine. Needs strace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use super::snapshot::{end, inject, layer, levels, names, restart};
use super::status::{check, schema};
use super::{CONTROL, Rig, SETTINGS, ctl_output, text};
use crate::guest::{BUTTON, Machine, halt, power_off, wait_for};

const EPHEMERAL: &str = "[[disk]]\nid = \"tmp\"\nbase = \"tmp.img\"\nephemeral = true\n";
/// Blocks of each disk.
const BLOCKS: usize = 16;

/// A machine with two disks, each a layer over its own base. Every other block of a layer differs
/// from its base.
fn machine(more: &str) -> Machine {
    let disk = |id: &str, more: &str| {
        format!("[[disk]]\nid = \"{id}\"\npath = \"{id}.layer\"\nbase = \"{id}.img\"\n{more}\n")
    };
    let scsi = "bus = \"virtio-scsi\"";
    let more = format!("{CONTROL}{}{}{more}", disk("a", ""), disk("b", scsi));
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    // The bases differ: a layer is found by the identity of its base.
    for (base, first) in [("a", 1), ("b", 31), ("tmp", 61)] {
        fs::write(machine.path(&format!("{base}.img")), content(first)).unwrap();
    }
    for disk in ["a", "b"] {
        let path = machine.path(&format!("{disk}.layer"));
        block::create_layer(&path, &machine.path(&format!("{disk}.img")), None).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut map_bytes = [0; 8];
        file.read_exact_at(&mut map_bytes, 4096 + 72).unwrap();
        // The map, and the unflushed map with its first page.
        let maps = 2 * u64::from_le_bytes(map_bytes) + 4096;
        let data_at = (8192 + maps).next_multiple_of(1 << 20);
        file.write_all_at(&[0x55, 0x55], 8192).unwrap();
        file.write_all_at(&content(101), data_at).unwrap();
    }
    machine
}

/// The bytes of a disk whose blocks have numbers from `first` on.
fn content(first: u8) -> Vec<u8> {
    (first..).take(BLOCKS).flat_map(|number| [number; 4096]).collect()
}

/// The bytes of a disk.
fn expected(disk: &str) -> Vec<u8> {
    let (base, layer) = (content(if disk == "a" { 1 } else { 31 }), content(101));
    (0..base.len()).map(|at| if at / 4096 % 2 == 0 { layer[at] } else { base[at] }).collect()
}

/// The bytes of a disk as its files have them.
fn read(folder: &Path, disk: &str) -> Vec<u8> {
    let image = folder.join("flat");
    layer(folder, &["flatten", &format!("{disk}.layer"), "flat"]);
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(image).unwrap();
    bytes
}

/// The names of the levels of a disk.
fn stack(folder: &Path, disk: &str) -> Vec<String> {
    levels(folder, &format!("{disk}.layer")).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_commit_merges_the_layer_below_each_disk() {
    let mut rig = Rig::of(machine(EPHEMERAL));
    let folder = rig.machine.path("");
    let before = names(&folder);
    check(&rig.get("/v1/commit").json(), &schema("CommitStatus"), "no commit");
    ctl_output(&rig, &["snapshot", "monday"]);
    ctl_output(&rig, &["snapshot", "tuesday", "a"]);
    let shown = ctl_output(&rig, &["commit"]);
    let mut lines = shown.lines();
    for (id, name, bytes) in
        [("a", "a.tuesday.layer", "0 bytes"), ("b", "b.monday.layer", "32 KiB")]
    {
        let (line, below) =
            (lines.next().unwrap(), if id == "a" { "a.monday.layer" } else { "b.img" });
        let expected = format!("{id}: {bytes} of {name} merged into {below} in ");
        assert!(line.starts_with(&expected), "{shown}");
        assert!(line.contains(" s; requests were held for "), "{shown}");
    }
    assert_eq!(stack(&folder, "a"), ["a.layer", "a.monday.layer", "a.img"]);
    let shown: Value = serde_json::from_str(&ctl_output(&rig, &["commit", "a", "--json"])).unwrap();
    check(&shown, &schema("CommitStatus"), "commit");
    assert_eq!(shown["disks"][0]["state"], "merged");
    check(&rig.get("/v1/commit").json(), &schema("CommitStatus"), "the last commit");
    assert_eq!(names(&folder), before);
    for disk in ["a", "b"] {
        assert_eq!(stack(&folder, disk), [format!("{disk}.layer"), format!("{disk}.img")]);
        layer(&folder, &["check", &format!("{disk}.layer")]);
    }
    let events = rig.get("/v1/events").json();
    let kinds = events["events"].as_array().unwrap().iter().map(|event| &event["event"]);
    assert_eq!(kinds.filter(|kind| *kind == "layer_merged").count(), 3);
    assert_eq!(ctl_output(&rig, &["commit", "--stop"]), "no commit is running\n");
    end(&mut rig);
    for disk in ["a", "b"] {
        assert!(read(&folder, disk) == expected(disk), "{disk}");
        assert_eq!(fs::read(folder.join(format!("{disk}.img"))).unwrap(), expected(disk));
    }
    restart(&mut rig);
    end(&mut rig);
}

#[test]
fn a_refused_commit_changes_no_layer() {
    let mut rig = Rig::of(machine(EPHEMERAL));
    let folder = rig.machine.path("");
    let refused = |arguments: &[&str], expected: &[&str]| {
        let output = rig.ctl(&[&["commit"], arguments].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for expected in expected {
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    };
    refused(&[], &["no disk has a frozen layer that a snapshot has made; make a snapshot first"]);
    refused(&["a"], &["a.layer: it stands on ", "a.img directly", "no layer has changed"]);
    refused(&["c"], &["there is no disk \"c\"", "a, b, tmp"]);
    refused(&["tmp"], &["ephemeral"]);
    ctl_output(&rig, &["snapshot", "monday"]);
    let before = names(&folder);
    // A refusal of one disk is one of all.
    refused(&["a", "tmp"], &["ephemeral"]);
    assert_eq!(rig.get("/v1/commit").json()["disks"].as_array().unwrap().len(), 0);
    assert_eq!(names(&folder), before);
    ctl_output(&rig, &["commit"]);
    end(&mut rig);
}

/// Whatever a kill leaves, the machine starts again, and a commit completes what was begun. Each
/// file is written by one thread, so that its calls are counted in order.
#[test]
fn a_kill_during_a_commit_leaves_disks_that_start() {
    const CALLS: [&str; 7] =
        ["pwrite64", "fdatasync", "unlink", "fsync", "fallocate", "ftruncate", "utimensat"];
    let mut killed = Vec::new();
    for name in ["a.layer", "a.monday.layer", "a.img", ""] {
        for call in CALLS {
            for count in 1.. {
                let what = format!("{call} {count} of {name:?}");
                if !is_killed(name, call, count, &what) {
                    break;
                }
                killed.push(what);
            }
        }
    }
    for file in ["a.layer", "a.monday.layer", "a.img"] {
        let is_write = |what: &&String| what.ends_with(&format!("of {file:?}"));
        assert!(killed.iter().filter(is_write).count() >= 2, "{killed:?}");
    }
}

/// An error of the host leaves the disk as it was, and the commit can be run again.
#[test]
fn a_commit_that_fails_can_be_run_again() {
    let mut failed = 0;
    for (name, call) in [
        ("a.layer", "pwrite64"),
        ("a.layer", "fdatasync"),
        ("a.monday.layer", "pwrite64"),
        ("a.monday.layer", "unlink"),
        ("a.img", "pwrite64"),
        ("a.img", "utimensat"),
        ("a.img", "fdatasync"),
        ("a.img", "fsync"),
    ] {
        let (mut rig, before) = with_snapshot();
        let folder = rig.machine.path("");
        let path = rig.machine.path(name);
        let options = ["-P", path.to_str().unwrap()];
        let what = format!("{call} of {name}");
        assert!(inject(&mut rig, &options, call, 1, "error=EIO", &["commit", "a"]), "{what}");
        let answer = rig.get("/v1/commit").json();
        let disk = &answer["disks"][0];
        if call == "unlink" {
            let kept = disk["kept"].as_str().unwrap();
            assert!(kept.contains("the next start or commit removes it"), "{kept}");
            let output = rig.ctl(&["commit", "a"]);
            assert!(text(&output.stderr).contains("no frozen layer below it"), "{output:?}");
        } else {
            // The base is flushed before the commit begins.
            if name != "a.img" || call != "fdatasync" {
                assert_eq!(disk["state"], "failed", "{what}: {answer}");
                assert!(disk["error"].as_str().unwrap().contains("Input/output error"), "{answer}");
            }
            failed += 1;
            if name == "a.layer" && call == "fdatasync" {
                // The disk has lost writes, for all that it knows.
                stop(&mut rig);
                restart(&mut rig);
            }
            ctl_output(&rig, &["commit", "a"]);
        }
        assert_eq!(stack(&folder, "a"), ["a.layer", "a.img"], "{what}");
        assert_eq!(names(&folder), before, "{what}");
        stop(&mut rig);
        assert!(read(&folder, "a") == expected("a"), "{what}");
    }
    assert_eq!(failed, 7);
}

/// A machine that has a snapshot of one disk, and the names in its folder before that.
fn with_snapshot() -> (Rig, BTreeSet<String>) {
    let mut rig = Rig::of(machine(""));
    let before = names(&rig.machine.path(""));
    ctl_output(&rig, &["snapshot", "monday", "a"]);
    // So that the new top is opened by its name, which strace looks for.
    stop(&mut rig);
    restart(&mut rig);
    (rig, before)
}

/// Ends the machine at once.
fn stop(rig: &mut Rig) {
    rig.child.kill().unwrap();
    rig.child.wait().unwrap();
}

/// Kills a machine at a call during a commit, and lets it start again. Returns false if there was
/// no such call.
fn is_killed(name: &str, call: &str, count: u32, what: &str) -> bool {
    let (mut rig, before) = with_snapshot();
    let folder = rig.machine.path("");
    let path = rig.machine.path(name);
    let options = ["-P", path.to_str().unwrap()];
    if inject(&mut rig, &options, call, count, "signal=KILL", &["commit", "a"]) {
        stop(&mut rig);
        return false;
    }
    assert!(read(&folder, "a") == expected("a"), "{what}: left");
    restart(&mut rig);
    if stack(&folder, "a").len() == 3 {
        ctl_output(&rig, &["commit"]);
    }
    assert_eq!(stack(&folder, "a"), ["a.layer", "a.img"], "{what}");
    assert_eq!(names(&folder), before, "{what}");
    stop(&mut rig);
    assert!(read(&folder, "a") == expected("a"), "{what}: completed");
    layer(&folder, &["check", "a.layer"]);
    true
}
