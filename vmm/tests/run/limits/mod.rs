//! The needs of a machine, compared with the limits of its process.

mod cgroup;
mod descriptors;
mod driver;
mod memory;
mod threads;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use fixtures::OwnedChild;
use serde_json::Value;

use crate::guest::{Machine, wait};

/// Descriptors that [`with_descriptors`] passes to its process: the standard streams.
pub(crate) const INHERITED: u64 = 3;

/// `bulkhead` with a soft and a hard limit of descriptors, and without the descriptors that other
/// threads of the test have open while it forks.
pub(crate) fn with_descriptors(soft: u64, hard: u64) -> Command {
    const CLOSE_OTHERS: &str = "for fd in /proc/$$/fd/*; do
        number=${fd##*/}
        if [ $number -gt 2 ]; then eval \"exec $number>&-\"; fi
    done
    exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", CLOSE_OTHERS, "bash", "prlimit", &format!("--nofile={soft}:{hard}")]);
    command.arg(env!("CARGO_BIN_EXE_bulkhead"));
    command
}

/// The number of `resource` that the machine needs.
pub(crate) fn needed(machine: &Machine, resource: &str) -> u64 {
    let mut command = with_descriptors(1000, 1000);
    let output = command.args(["check", "--json"]).arg(machine.path("vm.toml")).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["needs"]["descriptors"]["available"], 1000 - INHERITED, "{answer}");
    answer["needs"][resource]["needed"].as_u64().unwrap()
}

fn start(mut command: Command) -> OwnedChild {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    OwnedChild(command.spawn().unwrap())
}

/// The exit code and the messages of a command that is expected to end.
fn end(command: Command) -> (Option<i32>, String) {
    end_of(start(command))
}

fn end_of(mut child: OwnedChild) -> (Option<i32>, String) {
    let code = wait(&mut child.0).code();
    let mut stderr = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (code, stderr)
}

/// The targets of the open descriptors of a process.
fn open_descriptors(child: &Child) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path());
    let targets = entries.filter_map(|entry| target(entry.unwrap()).ok());
    targets.map(|target| target.display().to_string()).collect()
}
