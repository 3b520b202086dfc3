//! Ephemeral disks of a running machine.

use std::fs::{self, File};

use fixtures::needs;
use rustix::process::Signal;
use serde_json::Value;

use super::status::{check, schema};
use super::{CONTROL, Rig, SETTINGS, ctl_output};
use crate::guest::{BUTTON, Machine, halt, power_off, signal, wait, wait_for};

/// A machine with two ephemeral disks over one base, in memory and in the folder "changes".
fn start() -> Rig {
    let disk = |id: &str, keys: &str| {
        format!(
            "[[disk]]\nid = \"{id}\"\nbase = \"base.img\"\nephemeral_limit = \"1MiB\"\n{keys}\n"
        )
    };
    let more = format!(
        "{CONTROL}[[scsi]]\nqueues = 1\n{}{}",
        disk("memory", "ephemeral = true"),
        disk("folder", "ephemeral = \"changes\""),
    );
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(SETTINGS, &more);
    File::create(machine.path("base.img")).unwrap().set_len(8 << 20).unwrap();
    fs::create_dir(machine.path("changes")).unwrap();
    Rig::of(machine)
}

#[test]
fn an_ephemeral_disk_is_shown_and_leaves_nothing_after_a_kill() {
    if !needs::kvm() {
        return;
    }
    let mut rig = start();
    let (base, folder) = (rig.machine.path("base.img"), rig.machine.path("changes"));
    let is_empty = || fs::read_dir(&folder).unwrap().next().is_none();
    for (id, place) in [("memory", Value::Null), ("folder", folder.to_str().unwrap().into())] {
        let shown = rig.get(&format!("/v1/disks/{id}")).json();
        check(&shown, &schema("Disk"), "disk");
        assert_eq!(
            (&shown["path"], &shown["size_bytes"]),
            (&base.to_str().unwrap().into(), &(8 << 20).into())
        );
        let changes = serde_json::json!({
            "folder": place, "used_bytes": 0, "limit_bytes": 1 << 20, "refused": 0,
        });
        assert_eq!(shown["ephemeral"], changes, "{id}");
        assert_eq!(shown["warnings"], serde_json::json!([]), "{id}");
    }
    let status = ctl_output(&rig, &["status"]);
    assert!(status.contains("base.img (ephemeral, 0 bytes of 1 MiB changed)"), "{status}");
    assert!(is_empty());

    // The file of a disk to attach may be anywhere: its paths are relative to its own folder.
    let text = "[[disk]]\nid = \"more\"\nbase = \"base.img\"\nephemeral = \"changes\"\n\
                bus = \"virtio-scsi\"\n";
    let more = rig.machine.path("more.toml");
    fs::write(&more, text).unwrap();
    let attached = ctl_output(&rig, &["attach", more.to_str().unwrap()]);
    assert!(attached.starts_with("more is attached as LUN 0"), "{attached}");
    let shown = rig.get("/v1/disks/more").json();
    assert_eq!(shown["ephemeral"]["folder"], folder.to_str().unwrap());
    let detached = ctl_output(&rig, &["detach", "more"]);
    assert!(detached.contains("its changes are gone"), "{detached}");
    let relative = "{\"base\": \"base.img\", \"ephemeral\": true, \"bus\": \"virtio-scsi\"}";
    let refused = rig.request("PUT", "/v1/disks/again", relative);
    assert!(refused.body.contains("`base` is relative"), "{refused:?}");

    signal(&rig.child, Signal::KILL);
    wait(&mut rig.child);
    assert!(is_empty());
    assert_eq!(fs::read(&base).unwrap(), vec![0; 8 << 20]);
}
