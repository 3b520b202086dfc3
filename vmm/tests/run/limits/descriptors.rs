//! File descriptors (RLIMIT_NOFILE).

use std::fmt::Write;
use std::fs::File;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fixtures::needs;
use rustix::process::Signal;

use super::driver::{Device, guest};
use super::{INHERITED, end, end_of, needed, open_descriptors, start, with_descriptors};
use crate::guest::{
    BUTTON, Machine, TIMEOUT, halt, power_off, print, signal, wait_for, wait_for_text, wait_until,
};

/// A machine with two virtio-blk disks, a SCSI controller with two disks, and an empty one, each
/// with two queues. Its guest uses all queues of all disks, then prints "up".
pub(super) fn machine(engine: &str) -> Machine {
    machine_with(engine, |id| format!("path = \"{id}.img\""))
}

/// The same, with keys of its own for each disk.
fn machine_with(engine: &str, keys: impl Fn(&str) -> String) -> Machine {
    let queues = 2;
    let blk = Device { queues, luns: None };
    let scsi = |luns| Device { queues: 2 + queues, luns: Some(luns) };
    let entropy = Device { queues: 1, luns: None };
    let devices = [blk, blk, scsi(2), scsi(0), entropy];
    let end = [print("up"), wait_for(BUTTON, 1), power_off(), halt()];
    let mut more = "[console]\nfile = \"console\"\n[control]\nsocket = \"control.sock\"\n\
                    [[scsi]]\ncontroller = 1\nqueues = 2\n"
        .to_owned();
    for (id, bus) in ["a", "b", "c", "d"].iter().zip(["blk", "blk", "scsi", "scsi"]) {
        write!(
            more,
            "[[disk]]\nid = \"{id}\"\n{}\nbus = \"virtio-{bus}\"\nqueues = 2\n\
             engine = \"{engine}\"\n",
            keys(id)
        )
        .unwrap();
    }
    let machine = Machine::with(&[guest(&devices, &end)], &more);
    machine.configure("vcpus = 2\nmemory = \"32MiB\"\nshutdown_grace = \"20s\"", &more);
    for id in ["a", "b", "c", "d"] {
        File::create(machine.path(&format!("{id}.img"))).unwrap().set_len(1 << 20).unwrap();
    }
    machine
}

/// Descriptors that the machine needs at other times: transient ones, clients of the control
/// socket, /dev/kvm, the watch of signals, a task management function of each controller, the own
/// kick of the first engine of a queue.
const UNUSED: usize = 8 + 8 + 1 + 1 + 2 + 2;
/// The images of an io_uring engine while it is made, once for each virtio-blk disk.
const UNUSED_BY_RINGS: usize = 2 * 2;

/// Descriptors of layers by which engines wait for several files; this guest waits for one. For
/// each of two queues of four disks an epoll descriptor, and another one and an event for each of
/// two files.
const UNUSED_BY_LAYERS: usize = 2 * 4 * (1 + 2 * 2);

/// `bulkhead run`, which has to raise the soft limit.
fn run(machine: &Machine, hard: u64) -> Command {
    let mut command = with_descriptors(16, hard);
    command.arg("run").arg(machine.path("vm.toml"));
    command
}

/// A machine whose hard limit is the estimate runs with all of its engines, and one less is
/// refused. All but `unused` descriptors are open.
fn the_estimate_is_exact(machine: &Machine, unused: usize) {
    let need = needed(machine, "descriptors");
    let limit = need + INHERITED;

    let child = start(run(machine, limit));
    wait_for_text(&machine.path("console"), "up");
    let expected = usize::try_from(limit).unwrap() - unused;
    // The workers add a signal to each engine before they sleep.
    let started = Instant::now();
    while open_descriptors(&child.0).len() != expected && started.elapsed() < TIMEOUT / 4 {
        sleep(Duration::from_millis(10));
    }
    let open = open_descriptors(&child.0);
    assert_eq!(open.len(), expected, "of {limit}: {open:#?}");
    signal(&child.0, Signal::TERM);
    assert_eq!(end_of(child), (Some(0), String::new()));

    let (code, stderr) = end(run(machine, limit - 1));
    assert_eq!(code, Some(2), "{stderr}");
    let message = format!("this machine needs {need} file descriptors (");
    let left = format!(
        "and {} are left: the limit is {} (`ulimit -Hn`), and {INHERITED} are in use",
        need - 1,
        limit - 1
    );
    assert!(stderr.contains(&message) && stderr.contains(&left), "{stderr}");
    assert!(stderr.contains("LimitNOFILE="), "{stderr}");
}

/// Frontends and their queues come later than the start.
#[test]
fn served_disk_is_refused_below_its_need() {
    let machine = Machine::new(&[halt()]);
    let image = machine.path("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    std::fs::write(machine.path("vm.toml"), "[disk]\nid = \"a\"\npath = \"disk.img\"\n").unwrap();
    let need = needed(&machine, "descriptors");
    let serve = |hard| {
        let mut command = with_descriptors(16, hard);
        command.arg("serve").arg("--socket").arg(machine.path("s")).arg(machine.path("vm.toml"));
        command
    };
    let (code, stderr) = end(serve(need + INHERITED - 1));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains(&format!("needs {need} file descriptors (")), "{stderr}");
    let child = start(serve(need + INHERITED));
    wait_until("the socket", || machine.path("s").exists());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.0.id())).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = open_files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(soft, need + INHERITED, "the soft limit is raised");
    signal(&child.0, Signal::TERM);
    assert_eq!(end_of(child).0, Some(0));
}

#[test]
fn descriptors_of_io_uring_engines_are_counted() {
    if needs::kvm() {
        the_estimate_is_exact(&machine("io_uring"), UNUSED + UNUSED_BY_RINGS);
    }
}

#[test]
fn descriptors_of_thread_pool_engines_are_counted() {
    if needs::kvm() {
        the_estimate_is_exact(&machine("threads"), UNUSED);
    }
}

/// Disks of two files each.
fn layered_machine(engine: &str) -> Machine {
    let keys = |id: &str| format!("path = \"{id}.layer\"\nbase = \"{id}.img\"\ncreate = true");
    machine_with(engine, keys)
}

#[test]
fn descriptors_of_layers_are_counted() {
    if needs::kvm() {
        let unused = UNUSED + 2 * UNUSED_BY_RINGS + UNUSED_BY_LAYERS;
        the_estimate_is_exact(&layered_machine("io_uring"), unused);
        the_estimate_is_exact(&layered_machine("threads"), UNUSED + UNUSED_BY_LAYERS);
    }
}

#[test]
fn descriptors_of_recorded_disks_are_counted() {
    if needs::kvm() {
        let keys = |id: &str| format!("path = \"{id}.img\"\nrecord = \"{id}.log\"");
        the_estimate_is_exact(&machine_with("threads", keys), UNUSED);
    }
}

/// The top has no path, but the same files.
#[test]
fn descriptors_of_ephemeral_disks_are_counted() {
    if needs::kvm() {
        let keys =
            |id: &str| format!("base = \"{id}.img\"\nephemeral = true\nephemeral_limit = \"1MiB\"");
        the_estimate_is_exact(&machine_with("threads", keys), UNUSED + UNUSED_BY_LAYERS);
    }
}
