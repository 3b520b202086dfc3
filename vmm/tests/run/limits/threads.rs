//! Limits of threads: `pids.max` of cgroups, and RLIMIT_NPROC.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use fixtures::needs;
use rustix::process::Signal;

use super::cgroup::Cgroup;
use super::descriptors::machine;
use super::{end, end_of, needed, start};
use crate::guest::{Machine, halt, signal, wait_for_text};

/// Names of the kernel's threads: workers of rings, of which there may be more than one for a
/// queue, and the recovery of huge pages, which older kernels run elsewhere.
const KERNEL_THREADS: [&str; 2] = ["iou-wrk-", "kvm-nx-lpage"];

/// Threads that the machine needs at other times: of a detach, of the watch of signals, of four
/// jobs of the control socket, of the last flush of four disks, of the close of five devices, of
/// the queries of two SCSI disks. And the recovery of huge pages.
const UNUSED: u64 = 1 + 1 + 4 + 4 + 5 + 2 + 1;

/// A machine whose limit is the estimate runs with all of its engines, and one less is refused.
/// All but `unused` threads run, those of the kernel not counted.
fn the_estimate_is_exact(engine: &str, unused: u64) {
    let machine = machine(engine);
    let need = needed(&machine, "threads");
    let cgroup = Cgroup::with_pids(need);
    let child = start(cgroup.enter(&machine.command()));
    wait_for_text(&machine.path("console"), "up");
    let tasks = fs::read_dir(format!("/proc/{}/task", child.0.id())).unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names: Vec<_> = tasks.filter_map(|task| name(task.unwrap())).collect();
    let is_own = |name: &&String| !KERNEL_THREADS.iter().any(|prefix| name.starts_with(prefix));
    let running = names.iter().filter(is_own).count();
    assert_eq!(u64::try_from(running).unwrap(), need - unused, "of {need}: {names:?}");
    signal(&child.0, Signal::TERM);
    assert_eq!(end_of(child), (Some(0), String::new()));

    let cgroup = Cgroup::with_pids(need - 1);
    let (code, stderr) = end(cgroup.enter(&machine.command()));
    assert_eq!(code, Some(2), "{stderr}");
    let limit = cgroup.limit();
    let left = format!(
        "and {} are left: the limit is {} ({}), and 0 are in use",
        need - 1,
        need - 1,
        limit.display()
    );
    assert!(stderr.contains(&format!("this machine needs {need} threads (")), "{stderr}");
    assert!(stderr.contains(&left) && stderr.contains("TasksMax="), "{stderr}");
}

#[test]
fn threads_of_io_uring_engines_are_counted() {
    if needs::root() && needs::kvm() {
        // The ring workers of eight queues.
        the_estimate_is_exact("io_uring", UNUSED + 8);
    }
}

#[test]
fn threads_of_thread_pool_engines_are_counted() {
    if needs::root() && needs::kvm() {
        // The ring workers of two SCSI controllers.
        the_estimate_is_exact("threads", UNUSED + 4);
    }
}

/// The limit of a user who is not root. `check` needs no /dev/kvm to report it.
#[test]
fn threads_above_the_limit_of_the_user_are_refused() {
    if !needs::root() {
        return;
    }
    let machine = Machine::new(&[halt()]);
    machine.configure("vcpus = 100\nmemory = \"32MiB\"", "");
    // The build's folder may be private.
    fs::copy(env!("CARGO_BIN_EXE_bulkhead"), machine.path("bulkhead")).unwrap();
    fs::set_permissions(machine.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let need = needed(&machine, "threads");
    let mut command = Command::new("prlimit");
    command.arg("--nproc=100:100").args(["setpriv", "--reuid=60000", "--clear-groups"]);
    command.arg(machine.path("bulkhead")).arg("check").arg(machine.path("vm.toml"));
    let (code, stderr) = end(command);
    assert_eq!(code, Some(2), "{stderr}");
    let message = format!("this machine needs {need} threads (");
    let left = "and 100 are left: the limit is 100 (`ulimit -u`), and 0 are in use";
    assert!(stderr.contains(&message) && stderr.contains(left), "{stderr}");
    assert!(stderr.contains("LimitNPROC="), "{stderr}");
}
