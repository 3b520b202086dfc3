//! Snapshots of the disks of a running machine. Needs strace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::status::{check, schema};
use super::{CONTROL, Rig, SETTINGS, ctl_output, text};
use crate::guest::{BUTTON, Machine, halt, power_off, wait, wait_for, wait_until};

const BASE: &str = "base.img";
const MONDAY: &[&str] = &["snapshot", "monday"];
const EPHEMERAL: &str = "[[disk]]\nid = \"tmp\"\nbase = \"base.img\"\nephemeral = true\n";

/// A machine with two disks that are layers.
pub(super) fn machine(more: &str) -> Machine {
    let disk = |id: &str, more: &str| {
        format!("[[disk]]\nid = \"{id}\"\npath = \"{id}.layer\"\nbase = \"{BASE}\"\n{more}\n")
    };
    let scsi = "bus = \"virtio-scsi\"\ncreate = true";
    let more = format!("{CONTROL}{}{}{more}", disk("a", "create = true"), disk("b", scsi));
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    File::create(machine.path(BASE)).unwrap().set_len(1 << 20).unwrap();
    machine
}

/// Starts the machine again, which has ended.
pub(super) fn restart(rig: &mut Rig) {
    rig.child.wait().unwrap();
    rig.child = rig.machine.start();
    wait_until("the control socket", || UnixStream::connect(rig.socket()).is_ok());
    // The socket answers when the machine runs.
    assert_eq!(rig.state(), "running");
}

/// The output of `bulkhead layer`, which succeeds.
pub(super) fn layer(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    let output = command.arg("layer").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The layers from the top down, by file name, and whether each is frozen.
pub(super) fn levels(folder: &Path, name: &str) -> Vec<(String, bool)> {
    let info: Value = serde_json::from_str(&layer(folder, &["info", name, "--json"])).unwrap();
    let level = |level: &Value| {
        let path = Path::new(level["path"].as_str().unwrap()).file_name().unwrap();
        (path.to_str().unwrap().to_owned(), level["frozen"].as_bool().unwrap())
    };
    info["levels"].as_array().unwrap().iter().map(level).collect()
}

#[test]
fn a_snapshot_freezes_all_disks_and_the_machine_starts_again() {
    let mut rig = Rig::of(machine(EPHEMERAL));
    let folder = rig.machine.path("");
    let shown: Value =
        serde_json::from_str(&ctl_output(&rig, &["snapshot", "monday", "--json"])).unwrap();
    check(&shown, &schema("Snapshot"), "snapshot");
    let shown = ctl_output(&rig, &["snapshot", "tuesday", "a"]);
    let (first, second) = shown.split_once('\n').unwrap();
    assert!(first.starts_with("snapshot tuesday: requests were held for "), "{shown}");
    assert!(second.starts_with("  a  ") && second.ends_with("/a.tuesday.layer\n"), "{shown}");
    let frozen = |name: &str| (format!("{name}.layer"), true);
    let top = |name: &str| (format!("{name}.layer"), false);
    let base = (BASE.to_owned(), true);
    let of_a = [top("a"), frozen("a.tuesday"), frozen("a.monday"), base.clone()];
    assert_eq!(levels(&folder, "a.layer"), of_a);
    assert_eq!(levels(&folder, "b.layer"), [top("b"), frozen("b.monday"), base]);
    // A copy of the machine as it was, while it runs.
    layer(&folder, &["create", "--base", "a.monday.layer", "copy.layer"]);
    let events = rig.get("/v1/events").json();
    let kinds = events["events"].as_array().unwrap().iter().map(|event| &event["event"]);
    assert_eq!(kinds.filter(|kind| *kind == "snapshot_made").count(), 3);
    end(&mut rig);
    restart(&mut rig);
    end(&mut rig);
}

/// Ends the machine.
pub(super) fn end(rig: &mut Rig) {
    ctl_output(rig, &["power-button"]);
    assert_eq!(wait(&mut rig.child).code(), Some(0));
}

#[test]
fn a_refused_snapshot_changes_no_disk() {
    let raw = "[[disk]]\nid = \"raw\"\npath = \"raw.img\"\n";
    let machine = machine(&format!("{raw}{EPHEMERAL}"));
    File::create(machine.path("raw.img")).unwrap().set_len(1 << 20).unwrap();
    let mut rig = Rig::of(machine);
    fs::write(rig.machine.path("b.taken.layer"), "").unwrap();
    let before = names(&rig.machine.path(""));
    let refused = |arguments: &[&str], expected: &[&str]| {
        let output = rig.ctl(&[&["snapshot"], arguments].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for expected in expected {
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    };
    refused(&["monday"], &["raw is no layer", "name the disks"]);
    refused(&["monday", "a", "raw"], &["raw is no layer"]);
    refused(&["monday", "a", "tmp"], &["tmp is ephemeral", "name the other disks"]);
    refused(&["monday", "c"], &["there is no disk \"c\"", "a, b, raw, tmp"]);
    refused(&["../x", "a"], &["is no name of a snapshot"]);
    refused(&["taken", "a", "b"], &["b.taken.layer exists already; use another name"]);
    assert_eq!(names(&rig.machine.path("")), before);
    // A disk whose folder refuses the last step keeps its top, and so does the other one.
    fs::rename(rig.machine.path("b.layer"), rig.machine.path("moved.layer")).unwrap();
    refused(&["monday", "a", "b"], &["b.layer: it was moved or deleted"]);
    fs::rename(rig.machine.path("moved.layer"), rig.machine.path("b.layer")).unwrap();
    assert_eq!(names(&rig.machine.path("")), before);
    ctl_output(&rig, &["snapshot", "monday", "a", "b"]);
    end(&mut rig);
}

/// The names in a folder.
pub(super) fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs a command of `ctl` during which the `count`th call of a thread has this injected, of those
/// that strace selects by the options. Returns whether the machine survived.
pub(super) fn inject(
    rig: &mut Rig,
    options: &[&str],
    call: &str,
    count: u32,
    what: &str,
    command: &[&str],
) -> bool {
    let log = rig.machine.path("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &rig.child.id().to_string(), "-o", log.to_str().unwrap()])
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{what}:when={count}")])
        .args(options)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", rig.child.id());
    let is_traced = || fs::read_to_string(&status).is_ok_and(|s| !s.contains("TracerPid:\t0"));
    wait_until("strace", is_traced);
    let answer = rig.ctl(command);
    // The end of strace lets the machine run, or lets its parent see that it was killed.
    strace.kill().unwrap();
    strace.wait().unwrap();
    fs::remove_file(log).unwrap();
    let error = text(&answer.stderr);
    let is_refused = ["no disk has changed", "no layer has changed", "Input/output error"]
        .iter()
        .any(|refusal| error.contains(refusal));
    if answer.status.success() || is_refused {
        return true;
    }
    assert!(!wait(&mut rig.child).success(), "{answer:?}");
    false
}

/// Whatever a kill leaves, the machine starts again with all of its disks, and the folder has no
/// other file than those of a snapshot that was made.
#[test]
fn a_kill_during_a_snapshot_leaves_disks_that_start() {
    let mut killed = 0;
    for call in ["pwrite64", "fdatasync", "linkat", "renameat2", "fsync"] {
        for count in 1..6 {
            let mut rig = Rig::of(machine(""));
            if inject(&mut rig, &[], call, count, "signal=KILL", MONDAY) {
                break;
            }
            killed += 1;
            restart(&mut rig);
            let folder = rig.machine.path("");
            for disk in ["a", "b"] {
                let levels = levels(&folder, &format!("{disk}.layer"));
                let frozen = format!("{disk}.monday.layer");
                assert_eq!(levels[1].0 == frozen, names(&folder).contains(&frozen), "{levels:?}");
                assert!(levels.len() == 2 || levels[1] == (frozen, true), "{levels:?}");
            }
            ctl_output(&rig, &["snapshot", "tuesday"]);
            rig.child.kill().unwrap();
        }
    }
    assert!(killed >= 6, "{killed}");
}

/// For example where the file system cannot exchange names.
#[test]
fn a_snapshot_that_cannot_be_completed_is_undone() {
    let mut rig = Rig::of(machine(""));
    assert!(!inject(&mut rig, &[], "renameat2", 1, "signal=KILL", MONDAY));
    let folder = rig.machine.path("");
    assert_eq!(levels(&folder, "a.layer")[0], ("a.layer".to_owned(), true), "it is frozen");
    let mut check = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    let check = check.arg("check").arg(rig.machine.path("vm.toml")).output().unwrap();
    assert!(check.status.success(), "a start completes it: {check:?}");
    let program = rig.machine.command();
    rig.child = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=renameat2"])
        .args(["-e", "inject=renameat2:error=EINVAL", "--"])
        .arg(program.get_program())
        .args(program.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the control socket", || UnixStream::connect(rig.socket()).is_ok());
    assert_eq!(rig.state(), "running");
    for disk in ["a", "b"] {
        let top = format!("{disk}.layer");
        assert_eq!(levels(&folder, &top), [(top, false), (BASE.to_owned(), true)]);
        assert!(!names(&folder).contains(&format!("{disk}.monday.layer")));
    }
    end(&mut rig);
    restart(&mut rig);
    ctl_output(&rig, &["snapshot", "monday"]);
    end(&mut rig);
}

/// If one disk cannot have its snapshot, none has it.
#[test]
fn a_snapshot_that_fails_is_undone() {
    let mut failed = 0;
    for call in ["pwrite64", "fdatasync", "linkat", "renameat2", "fsync"] {
        let mut rig = Rig::of(machine(""));
        let before = names(&rig.machine.path(""));
        assert!(inject(&mut rig, &[], call, 1, "error=EIO", MONDAY));
        if levels(&rig.machine.path(""), "a.layer").len() == 3 {
            continue;
        }
        failed += 1;
        assert_eq!(names(&rig.machine.path("")), before, "{call}");
        let shown = ctl_output(&rig, &["snapshot", "monday"]);
        assert!(shown.starts_with("snapshot monday"), "{call}: {shown}");
        end(&mut rig);
    }
    assert!(failed >= 3, "{failed}");
}
