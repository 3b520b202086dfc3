//! The socket in the file system: whose it is, and what was there before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use super::{CONTROL, Rig};
use crate::guest::{BUTTON, Machine, halt, power_off, wait_for};

#[test]
fn only_its_owner_may_use_it_and_it_goes_with_the_machine() {
    let rig = Rig::patient();
    let mode = fs::metadata(rig.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], CONTROL);
    machine.configure(super::SETTINGS, CONTROL);
    drop(UnixListener::bind(machine.path("control.sock")).unwrap());
    let rig = Rig::of(machine);
    assert_eq!(rig.state(), "running");
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn the_socket_of_another_machine_is_an_error_that_names_it() {
    let rig = Rig::patient();
    let mut second = rig.machine.command();
    let output = second.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("control.sock` is in use"), "{stderr}");
    assert_eq!(rig.state(), "running", "the first one goes on");
}

#[test]
fn a_machine_without_one_says_how_to_get_one() {
    let rig = Rig::patient();
    rig.machine.configure("memory = \"32MiB\"", "");
    let output = rig.ctl(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("add `[control]`"));
}
