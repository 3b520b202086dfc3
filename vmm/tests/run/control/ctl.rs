//! The output and the exit code of `bulkhead ctl`.

use std::process::Command;

use super::{Rig, ctl_output, text};
use crate::guest::{Machine, halt, wait};

#[test]
fn status_disks_stats_and_metrics() {
    let rig = Rig::with_disks();
    let status = ctl_output(&rig, &["status"]);
    assert!(status.starts_with("running, started "), "{status}");
    assert!(status.contains(": 2 vCPUs, 32 MiB of memory; bulkhead "), "{status}");
    let lines: Vec<_> = status.lines().collect();
    let column = |word: &str| lines[2].find(word).unwrap_or_else(|| panic!("{status}"));
    assert_eq!(lines[3].find("writeback"), Some(column("CACHE")), "{status}");
    assert_eq!(lines[4].find("unsafe"), Some(column("CACHE")), "{status}");
    assert!(lines[3].contains("auto") && lines[3].contains("4 MiB"), "{status}");
    assert!(status.contains("warning: disk fast: cache mode unsafe"), "{status}");
    assert!(!status.contains('\x1b'), "no colour in a pipe");

    assert_eq!(ctl_output(&rig, &["disks"]), status.split_once("\n\n").unwrap().1);
    let stats = ctl_output(&rig, &["stats", "root"]);
    assert!(stats.starts_with("root: 2 queues, 0 in flight"), "{stats}");
    assert!(stats.contains("write zeroes") && stats.contains("wait in the queue"), "{stats}");
    assert!(
        ctl_output(&rig, &["stats"]).contains("fast: 1 queue")
            || ctl_output(&rig, &["stats"]).contains("fast: 2 queues")
    );
    assert!(ctl_output(&rig, &["metrics"]).contains("bulkhead_vcpus 2\n"));
}

#[test]
fn json_output() {
    let rig = Rig::with_disks();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&ctl_output(&rig, arguments)).unwrap()
    };
    assert_eq!(json(&["status", "--json"])["vcpus"], 2);
    assert_eq!(json(&["--json", "disks"])[1]["id"], "fast");
    assert_eq!(json(&["stats", "fast", "--json"])["id"], "fast");
    assert_eq!(json(&["pause", "--json"])["state"], "paused");
}

#[test]
fn commands_change_the_machine() {
    let mut rig = Rig::with_disks();
    assert_eq!(ctl_output(&rig, &["pause", "--drain"]), "paused; no request is in flight\n");
    assert_eq!(ctl_output(&rig, &["resume"]), "running\n");
    assert_eq!(ctl_output(&rig, &["resize", "root", "8MiB"]), "root has 8 MiB\n");
    assert_eq!(ctl_output(&rig, &["resize", "root"]), "root has 8 MiB\n");
    assert_eq!(ctl_output(&rig, &["pause"]), "paused; no request is in flight\n");
    let pressed = ctl_output(&rig, &["power-button"]);
    assert_eq!(pressed, "pressed the power button; the guest sees it after a resume\n");
    assert_eq!(ctl_output(&rig, &["resume"]), "running\n");
    assert_eq!(wait(&mut rig.child).code(), Some(0));
}

#[test]
fn refused_commands() {
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
fn no_machine_at_the_target() {
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
