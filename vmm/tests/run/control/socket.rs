//! The file of the control socket: its mode, and files that exist before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use super::{CONTROL, Rig};
use crate::guest::{BUTTON, Machine, halt, power_off, wait_for};

#[test]
fn only_the_owner_may_connect_and_the_file_is_removed() {
    let rig = Rig::power_button();
    let mode = fs::metadata(rig.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn an_abandoned_socket_is_replaced() {
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], CONTROL);
    machine.configure(super::SETTINGS, CONTROL);
    drop(UnixListener::bind(machine.path("control.sock")).unwrap());
    let rig = Rig::of(machine);
    assert_eq!(rig.state(), "running");
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn the_socket_of_another_machine_is_an_error() {
    let rig = Rig::power_button();
    let mut second = rig.machine.command();
    let output = second.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("control.sock` is in use"), "{stderr}");
    assert_eq!(rig.state(), "running", "the first machine continues");
}

#[test]
fn a_missing_control_socket_has_a_remedy() {
    let rig = Rig::power_button();
    rig.machine.configure("memory = \"32MiB\"", "");
    let output = rig.ctl(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("add `[control]`"));
}
