//! `bulkhead crash test`: its machine, and how the command ends.

use std::fs::{self, File};
use std::process::{Child, Command, Output, Stdio};

use fixtures::{needs, wait_for as wait_for_some, with_default_signals};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::guest::{BUTTON, Machine, halt, power_off, signal, wait, wait_for, wait_until};

/// A machine with a disk and no control socket, whose guest waits for the power button.
fn machine() -> Machine {
    let code = [wait_for(BUTTON, 1), power_off(), halt()];
    let machine = Machine::with(&code, "[[disk]]\nid = \"data\"\npath = \"data.img\"\n");
    File::create(machine.path("data.img")).unwrap().set_len(1 << 20).unwrap();
    machine
}

/// `crash test` of the machine, whose folder is `crash`, with the messages of it in `said`.
fn command(machine: &Machine, more: &[&str]) -> Command {
    let mut command = with_default_signals(env!("CARGO_BIN_EXE_bulkhead"));
    let folder = machine.path("crash");
    command.args(["crash", "test"]).arg(machine.path("vm.toml")).arg("--dir").arg(folder);
    command.args(["--check", "true"]).args(more).current_dir(machine.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(machine: &Machine, workload: &str) -> Child {
    let child = command(machine, &["--run", workload]).spawn().unwrap();
    let started = machine.path("started");
    wait_until("the workload runs", || started.exists());
    child
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_workload_finds_a_control_socket_that_the_machine_did_not_name() {
    if !needs::kvm() {
        return;
    }
    let machine = machine();
    let program = env!("CARGO_BIN_EXE_bulkhead");
    let workload = format!("{program} ctl \"$BULKHEAD_CONTROL\" mark hello >marked");
    let more = ["--run", &workload, "--json", "--junit", "crash.xml"];
    let output = command(&machine, &more).output().unwrap();
    assert_eq!(fs::read_to_string(machine.path("marked")).unwrap(), "marked data\n");
    // The guest wrote nothing, and so nothing was tested.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(error(&output).contains("the log has no writes"), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["end"], "error");
    let xml = fs::read_to_string(machine.path("crash.xml")).unwrap();
    assert!(xml.contains("errors=\"1\"") && xml.contains("has no writes"), "{xml}");
}

#[test]
fn an_interrupted_test_exits_with_130() {
    if !needs::kvm() {
        return;
    }
    let machine = machine();
    let mut child = start(&machine, "touch started; exec sleep 60");
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child).code(), Some(130));
    let output = child.wait_with_output().unwrap();
    assert!(error(&output).contains("interrupted"), "{output:?}");
}

#[test]
fn the_machine_of_a_killed_test_ends() {
    if !needs::kvm() {
        return;
    }
    let machine = machine();
    // The workload ends by itself.
    let workload = "pgrep -P $PPID bulkhead >pid; touch started; sleep 1";
    let mut child = start(&machine, workload);
    let pid = fs::read_to_string(machine.path("pid")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    test_kill_process(pid).unwrap();
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    wait(&mut child);
    let has_ended = || test_kill_process(pid).is_err().then_some(());
    wait_for_some(has_ended).unwrap();
}

#[test]
fn wrong_command_lines_exit_with_2_before_the_machine_starts() {
    if !needs::kvm() {
        return;
    }
    let machine = machine();
    for more in [["--check-guest", "nope.toml"], ["--check-guest", "vm.toml"], ["--disk", "other"]]
    {
        let output = command(&machine, &more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}: {output:?}");
        assert!(!machine.path("crash").exists(), "{more:?}");
    }
    // The file of the report is one that the test keeps.
    for kept in ["vm.toml", "data.img"] {
        let output = command(&machine, &["--junit", kept]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{kept}: {output:?}");
        assert!(machine.path(kept).metadata().unwrap().len() > 0);
    }
}
