//! `bulkhead ctl` as its user meets it.

use std::process::Command;

use super::{Rig, said, text};
use crate::guest::{Machine, halt, wait};

#[test]
fn it_shows_the_machine() {
    let rig = Rig::with_disks();
    let status = said(&rig, &["status"]);
    assert!(status.starts_with("running, started "), "{status}");
    assert!(status.contains(": 2 vCPUs, 32 MiB of memory; bulkhead "), "{status}");
    let lines: Vec<_> = status.lines().collect();
    let column = |word: &str| lines[2].find(word).unwrap_or_else(|| panic!("{status}"));
    assert_eq!(lines[3].find("writeback"), Some(column("CACHE")), "{status}");
    assert_eq!(lines[4].find("unsafe"), Some(column("CACHE")), "{status}");
    assert!(lines[3].contains("auto") && lines[3].contains("4 MiB"), "{status}");
    assert!(status.contains("warning: disk fast: cache mode unsafe"), "{status}");
    assert!(!status.contains('\x1b'), "no colour into a pipe");

    assert_eq!(said(&rig, &["disks"]), status.split_once("\n\n").unwrap().1);
    let stats = said(&rig, &["stats", "root"]);
    assert!(stats.starts_with("root: 2 queues, 0 in flight"), "{stats}");
    assert!(stats.contains("write zeroes") && stats.contains("wait in the queue"), "{stats}");
    assert!(
        said(&rig, &["stats"]).contains("fast: 1 queue")
            || said(&rig, &["stats"]).contains("fast: 2 queues")
    );
    assert!(said(&rig, &["metrics"]).contains("bulkhead_vcpus 2\n"));
}

#[test]
fn it_gives_the_machines_json() {
    let rig = Rig::with_disks();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&said(&rig, arguments)).unwrap()
    };
    assert_eq!(json(&["status", "--json"])["vcpus"], 2);
    assert_eq!(json(&["--json", "disks"])[1]["id"], "fast");
    assert_eq!(json(&["stats", "fast", "--json"])["id"], "fast");
    assert_eq!(json(&["pause", "--json"])["state"], "paused");
}

#[test]
fn it_commands_the_machine() {
    let mut rig = Rig::with_disks();
    assert_eq!(said(&rig, &["pause"]), "paused\n");
    assert_eq!(said(&rig, &["resume"]), "running\n");
    assert_eq!(said(&rig, &["resize", "root", "8MiB"]), "root has 8 MiB\n");
    assert_eq!(said(&rig, &["resize", "root"]), "root has 8 MiB\n");
    assert_eq!(said(&rig, &["pause"]), "paused\n");
    let pressed = said(&rig, &["power-button"]);
    assert_eq!(pressed, "pressed the power button; the guest learns of it when it goes on\n");
    assert_eq!(said(&rig, &["resume"]), "running\n");
    assert_eq!(wait(&mut rig.child).code(), Some(0));
}

#[test]
fn it_says_why_not() {
    let rig = Rig::with_disks();
    let refused = |arguments: &[&str], code: i32, why: &str| {
        let output = rig.ctl(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(why), "{arguments:?}: {stderr}");
    };
    refused(&["stats", "other"], 1, "there is no disk \"other\"; the disks are: root, fast");
    refused(&["resize", "root", "1MiB"], 1, "a disk cannot shrink");
    refused(&["resize", "root", "1MB"], 2, "powers of 1024");
    refused(&["resize"], 2, "<ID>");
    refused(&["reboot"], 2, "reboot");
}

#[test]
fn it_says_when_nobody_is_there() {
    let ask = |target: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        let output = command.arg("ctl").arg(target).arg("status").output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let machine = Machine::with(&[halt()], super::CONTROL);
    let (code, stderr) = ask(&machine.path("vm.toml"));
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("there is no control socket") && stderr.contains("control.sock"),
        "{stderr}"
    );
    drop(std::os::unix::net::UnixListener::bind(machine.path("control.sock")).unwrap());
    let (code, stderr) = ask(&machine.path("control.sock"));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("the machine is not running"), "{stderr}");
    let (code, stderr) = ask(&machine.path("none.toml"));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("no such file"), "{stderr}");
    machine.configure("memory = 1", "");
    assert_eq!(ask(&machine.path("vm.toml")).0, Some(2));
}
