//! The exit codes of a run.

use std::time::Instant;

use rustix::process::Signal;

use crate::guest::{
    BUTTON, KEYBOARD, Machine, PVPANIC, RESET, TIMEOUT, halt, out, power_off, print, signal, wait,
    wait_for, wait_for_text, write_noise,
};

/// `ud2`, with an empty interrupt descriptor table.
const UNDEFINED: [u8; 2] = [0x0f, 0x0b];
/// `mov edi, 256 MiB; cmpxchg16b [rdi]`: KVM does not emulate this instruction on a device.
const NOT_EMULATED: [u8; 9] = [0xbf, 0, 0, 0, 0x10, 0x48, 0x0f, 0xc7, 0x0f];

fn end_of(code: &[Vec<u8>]) -> (Option<i32>, String, String) {
    let output = Machine::new(code).run();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn power_off_exits_with_0() {
    let (code, stdout, stderr) = end_of(&[print("hello\n"), power_off(), halt()]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), "hello\n", ""));
}

#[test]
fn cache_unsafe_is_a_warning_at_each_start() {
    let disk = "[[disk]]\nid = \"fast\"\npath = \"fast.img\"\ncache = \"unsafe\"\n";
    let machine = Machine::with(&[power_off(), halt()], disk);
    std::fs::File::create(machine.path("fast.img")).unwrap().set_len(1 << 20).unwrap();
    let output = machine.run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("`cache = \"unsafe\"` ignores the guest's flushes"), "{stderr}");
}

#[test]
fn reboot_exits_with_10() {
    for (port, value) in [(RESET, 1), (KEYBOARD, 0xfe)] {
        assert_eq!(end_of(&[out(port, value), halt()]).0, Some(10));
    }
}

#[test]
fn panic_exits_with_11() {
    assert_eq!(end_of(&[out(PVPANIC, 1), halt()]).0, Some(11));
}

/// Linux prints after the report of a panic what it could not print before, and may then reboot.
#[test]
fn output_after_the_report_of_a_panic_is_written() {
    for end in [halt(), out(RESET, 1)] {
        let (code, stdout, stderr) = end_of(&[out(PVPANIC, 1), print("the reason\n"), end]);
        assert_eq!((code, stdout.as_str()), (Some(11), "the reason\n"));
        assert!(stderr.starts_with("the guest's kernel panicked; "), "{stderr}");
    }
}

#[test]
fn triple_fault_exits_with_12_and_says_so() {
    let (code, _, stderr) = end_of(&[UNDEFINED.to_vec(), halt()]);
    assert_eq!(code, Some(12));
    assert!(stderr.starts_with("the guest stopped on a triple fault; "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// nohup(1) ignores SIGHUP.
#[test]
fn an_ignored_signal_stays_ignored() {
    let more = "[console]\nfile = \"console\"";
    let machine =
        Machine::with(&[print("up"), wait_for(BUTTON, 1), print("off"), power_off(), halt()], more);
    machine.configure("memory = \"32MiB\"\nshutdown_grace = \"20s\"", more);
    let mut command = std::process::Command::new("env");
    command.arg("--ignore-signal=HUP").arg(env!("CARGO_BIN_EXE_bulkhead"));
    command.arg("run").arg(machine.path("vm.toml")).stdin(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_for_text(&machine.path("console"), "up");
    signal(&child, Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let console = std::fs::read_to_string(machine.path("console")).unwrap();
    assert_eq!(console, "up", "the power button was pressed");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_kvm_failure_ends_the_run_with_an_explanation() {
    let start = Instant::now();
    let (code, _, stderr) = end_of(&[NOT_EMULATED.to_vec(), halt()]);
    assert_eq!(code, Some(1));
    assert!(start.elapsed() < TIMEOUT / 4);
    assert!(stderr.contains("this host's KVM cannot run the guest"), "{stderr}");
    assert!(stderr.contains("instruction pointer 0x100005"), "{stderr}");
    assert!(stderr.contains("what to do"), "{stderr}");
}

#[test]
fn a_signal_presses_the_power_button() {
    let machine = Machine::with(
        &[print("up"), wait_for(BUTTON, 1), power_off(), halt()],
        "[console]\nfile = \"console\"",
    );
    let mut child = machine.start();
    wait_for_text(&machine.path("console"), "up");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_guest_that_ignores_the_button_is_stopped_after_the_grace_period() {
    for first in [Signal::TERM, Signal::INT] {
        let machine = Machine::with(&[print("up"), halt()], "[console]\nfile = \"console\"");
        let mut child = machine.start();
        wait_for_text(&machine.path("console"), "up");
        let start = Instant::now();
        signal(&child, first);
        assert_eq!(wait(&mut child).code(), Some(13));
        assert!(start.elapsed().as_millis() >= 300, "stopped before the end of the grace period");
    }
}

#[test]
fn a_second_signal_stops_the_guest_at_once() {
    // `jmp` to itself: the guest never exits.
    let machine = Machine::with(&[print("up"), vec![0xeb, 0xfe]], "[console]\nfile = \"console\"");
    machine
        .configure("memory = \"32MiB\"\nshutdown_grace = \"60m\"", "[console]\nfile = \"console\"");
    let mut child = machine.start();
    wait_for_text(&machine.path("console"), "up");
    signal(&child, Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the first signal stopped it");
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child).code(), Some(13));
}

/// The soft limit of a field of /proc/PID/limits (proc_pid_limits(5)).
fn soft_limit(child: &std::process::Child, name: &str) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn core_dumps_are_off_unless_asked_for() {
    for allowed in [false, true] {
        let more = "[console]\nfile = \"console\"";
        let machine = Machine::with(&[print("up"), halt()], more);
        let mut command = std::process::Command::new("prlimit");
        command.args(["--core=4096:8192", env!("CARGO_BIN_EXE_bulkhead"), "run"]);
        command.args(allowed.then_some("--core-dumps")).arg(machine.path("vm.toml"));
        let mut child = command.stdin(std::process::Stdio::null()).spawn().unwrap();
        wait_for_text(&machine.path("console"), "up");
        let limit = soft_limit(&child, "Max core file size");
        signal(&child, Signal::TERM);
        assert_eq!(wait(&mut child).code(), Some(13));
        assert_eq!(limit, if allowed { "4096" } else { "0" });
    }
}

#[test]
fn a_kernel_outside_of_memory_is_an_error() {
    let machine = Machine::new(&[halt()]);
    machine.misplace_kernel();
    let output = machine.run();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("kernel is damaged, or its load address is outside of guest memory"),
        "{stderr}"
    );
}

#[test]
fn an_initramfs_that_does_not_fit_is_an_error() {
    let machine = Machine::with(&[halt()], "initramfs = \"initramfs\"");
    write_noise(&machine.path("initramfs"), 40 << 20);
    let output = machine.run();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("it needs 40 MiB of 30 MiB available"), "{stderr}");
}
