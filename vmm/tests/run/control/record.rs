//! Recorded disks of a running machine.

use std::fs::{self, File};

use block::{LOG_SECTOR, LogEntry, LogKind, LogSuper};
use fixtures::needs;
use rustix::process::Signal;

use super::status::{check, schema};
use super::{CONTROL, Rig, SETTINGS, ctl_output};
use crate::guest::{BUTTON, Machine, halt, power_off, signal, wait, wait_for};

fn start() -> Rig {
    let disk = |id: &str, keys: &str| {
        format!("[[disk]]\nid = \"{id}\"\npath = \"{id}.img\"\nrecord = \"{id}.log\"\n{keys}\n")
    };
    let more = format!(
        "{CONTROL}{}{}[[disk]]\nid = \"c\"\npath = \"c.img\"\n",
        disk("a", ""),
        disk("b", "bus = \"virtio-scsi\"")
    );
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    for id in ["a", "b", "c"] {
        File::create(machine.path(&format!("{id}.img"))).unwrap().set_len(1 << 20).unwrap();
    }
    Rig::of(machine)
}

/// The entries of a log without writes: kind and text. Zeroes may follow the last one.
fn entries(log: &[u8]) -> Vec<(LogKind, String)> {
    let entry = |sector: &[u8]| {
        let entry = LogEntry::decode(sector).unwrap();
        (entry.kind, String::from_utf8(entry.text(sector).to_vec()).unwrap())
    };
    let sectors = log[LOG_SECTOR..].chunks(LOG_SECTOR);
    sectors.take_while(|sector| sector.iter().any(|byte| *byte != 0)).map(entry).collect()
}

#[test]
fn a_recorded_disk_has_marks_and_its_log_is_closed_at_the_end() {
    if !needs::kvm() {
        return;
    }
    let mut rig = start();
    assert_eq!(ctl_output(&rig, &["mark", "one"]), "marked a, b\n");
    assert_eq!(ctl_output(&rig, &["mark", "two", "b"]), "marked b\n");
    let shown = rig.get("/v1/disks/b").json();
    check(&shown, &schema("Disk"), "disk");
    let log = rig.machine.path("b.log");
    let record = serde_json::json!({
        "path": log.to_str().unwrap(), "bytes": 1536, "entries": 2, "end": null, "failed": false,
    });
    assert_eq!(shown["record"], record);
    assert_eq!(rig.get("/v1/disks/c").json()["record"], serde_json::Value::Null);
    let refused = rig.request("POST", "/v1/mark", "{\"text\": \"x\", \"disks\": [\"c\"]}");
    assert!(refused.body.contains("is not recorded"), "{refused:?}");

    let stopped = ctl_output(&rig, &["stop-record", "a"]);
    assert!(stopped.starts_with("a is not recorded any more; "), "{stopped}");
    assert!(stopped.ends_with("a.log has 1.5 KiB\n"), "{stopped}");
    assert_eq!(ctl_output(&rig, &["mark", "three"]), "marked b\n");

    let more = rig.machine.path("more.toml");
    let text =
        "[[disk]]\nid = \"d\"\npath = \"d.img\"\nrecord = \"d.log\"\nbus = \"virtio-scsi\"\n";
    fs::write(&more, text).unwrap();
    File::create(rig.machine.path("d.img")).unwrap().set_len(1 << 20).unwrap();
    ctl_output(&rig, &["attach", more.to_str().unwrap()]);
    ctl_output(&rig, &["detach", "d"]);
    let attached = fs::read(rig.machine.path("d.log")).unwrap();
    assert_eq!(entries(&attached), [(LogKind::End, "the disk was closed".to_owned())]);

    signal(&rig.child, Signal::TERM);
    wait(&mut rig.child);
    let log = fs::read(&log).unwrap();
    let (mark, end) = (LogKind::Mark, LogKind::End);
    let kinds = entries(&log);
    let expected = [(mark, "one"), (mark, "two"), (mark, "three"), (end, "the disk was closed")];
    assert!(kinds.iter().map(|(kind, text)| (*kind, text.as_str())).eq(expected), "{kinds:?}");
    assert_eq!(LogSuper::decode(&log).unwrap().entries, 4);
}

/// The controls of a layer reach it through its recording, which continues.
#[test]
fn a_recorded_layer_has_snapshots() {
    if !needs::kvm() {
        return;
    }
    let more = format!(
        "{CONTROL}[[disk]]\nid = \"a\"\npath = \"a.layer\"\nbase = \"base.img\"\ncreate = true\n\
         record = \"a.log\"\n"
    );
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    File::create(machine.path("base.img")).unwrap().set_len(1 << 20).unwrap();
    let mut rig = Rig::of(machine);
    let shown = ctl_output(&rig, &["snapshot", "monday"]);
    assert!(shown.ends_with("/a.monday.layer\n"), "{shown}");
    ctl_output(&rig, &["mark", "after"]);
    signal(&rig.child, Signal::TERM);
    wait(&mut rig.child);
    let log = fs::read(rig.machine.path("a.log")).unwrap();
    assert_eq!(entries(&log)[0], (LogKind::Mark, "after".to_owned()));
}

#[test]
fn the_log_of_a_killed_monitor_has_its_marks_and_is_not_overwritten() {
    if !needs::kvm() {
        return;
    }
    let mut rig = start();
    ctl_output(&rig, &["mark", "one", "a"]);
    signal(&rig.child, Signal::KILL);
    wait(&mut rig.child);
    let log = rig.machine.path("a.log");
    let before = fs::read(&log).unwrap();
    assert_eq!(entries(&before), [(LogKind::Mark, "one".to_owned())]);
    let mut again = rig.machine.start();
    assert!(!wait(&mut again).success());
    assert_eq!(fs::read(&log).unwrap(), before);
}
