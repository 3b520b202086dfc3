//! The log is harmless: whether standard error is closed, stuck, full or hung up, the guest runs on
//! and its end is orderly.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::Signal;

use crate::control::Rig;
use crate::guest::{
    BUTTON, Machine, SERIAL, halt, misalign_queue, out, power_off, print, signal, wait, wait_for,
    wait_for_text,
};
use crate::terminal::Terminal;

const CONSOLE: &str = "[console]\nfile = \"console\"\n";

/// A guest that causes a warning, prints `up`, waits for its power button and prints `off`.
fn warning_guest() -> Vec<Vec<u8>> {
    let warn = [misalign_queue(), print("up")].concat();
    vec![warn, wait_for(BUTTON, 1), print("off"), power_off(), halt()]
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

/// A machine with a grace period that an overloaded host does not exceed.
fn machine(code: &[Vec<u8>], more: &str) -> Machine {
    let machine = Machine::with(code, more);
    machine.configure("memory = \"32MiB\"\nshutdown_grace = \"20s\"", more);
    machine
}

/// Waits for the guest, presses its power button, and checks the orderly end.
fn check_runs_and_ends(machine: &Machine, mut child: Child) {
    wait_for_text(&machine.path("console"), "up");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(0));
    wait_for_text(&machine.path("console"), "off");
}

fn start(machine: &Machine, stderr: impl Into<Stdio>) -> Child {
    let mut command = machine.command();
    command.arg("-v").stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

#[test]
fn the_guest_of_these_tests_causes_a_warning() {
    let machine = machine(&warning_guest(), CONSOLE);
    let (mut reader, writer) = pipe();
    check_runs_and_ends(&machine, start(&machine, writer));
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("device needs a reset"), "{log}");
}

#[test]
fn a_log_whose_reader_is_gone() {
    let machine = machine(&warning_guest(), CONSOLE);
    let (reader, writer) = pipe();
    drop(reader);
    check_runs_and_ends(&machine, start(&machine, writer));
}

#[test]
fn a_log_on_a_full_file_system() {
    let machine = machine(&warning_guest(), CONSOLE);
    let full = File::options().write(true).open("/dev/full").unwrap();
    check_runs_and_ends(&machine, start(&machine, full));
}

/// Fills the pipe, so that the next write to it blocks.
fn fill(writer: &OwnedFd) {
    fcntl_setpipe_size(writer, 4096).unwrap();
    File::from(writer.try_clone().unwrap()).write_all(&[b'.'; 4096]).unwrap();
}

#[test]
fn a_log_that_nobody_reads() {
    let machine = machine(&warning_guest(), CONSOLE);
    let (_reader, writer) = pipe();
    fill(&writer);
    check_runs_and_ends(&machine, start(&machine, writer));
}

/// The writer of the console logs, and the vCPU writes to the console.
#[test]
fn a_log_that_nobody_reads_while_the_console_stands_still() {
    let echo = [out(SERIAL, b'x'), vec![0xeb, 0xf7]].concat();
    let machine = machine(&[print("up"), echo], "");
    let (_log_reader, log) = pipe();
    fill(&log);
    let (mut console, output) = pipe();
    let mut command = machine.command();
    command.arg("-v").stdin(Stdio::null()).stdout(output).stderr(log);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut seen = [0; 2];
    console.read_exact(&mut seen).unwrap();
    // The console's buffer overflows, which is logged.
    std::thread::sleep(Duration::from_millis(500));
    let mut seen = vec![0; 64 << 10];
    console.read_exact(&mut seen).unwrap();
    let started = Instant::now();
    // Two equal signals may become one.
    signal(&child, Signal::TERM);
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child).code(), Some(13));
    assert!(started.elapsed() < Duration::from_secs(10), "ended after {:?}", started.elapsed());
}

#[test]
fn commands_are_answered_while_the_log_stands_still_and_its_reader_learns_the_loss() {
    let machine = Rig::power_button_machine();
    let (mut reader, writer) = pipe();
    fill(&writer);
    let child = start(&machine, writer);
    let rig = Rig::running(machine, child);
    // Each pause is a log line.
    for _ in 0..3000 {
        assert_eq!(rig.post("/v1/pause", "").status, 200);
        assert_eq!(rig.post("/v1/resume", "").status, 200);
    }
    let dropped = rig.metric("bulkhead_log_dropped_messages_total");
    assert!(dropped > 0);
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log
    });
    assert_eq!(rig.end(), Some(0));
    let log = reader.join().unwrap();
    let reports = log.lines().filter_map(|line| line.split_once(" log message"));
    let reported: u64 = reports.map(|(number, _)| number.parse::<u64>().unwrap()).sum();
    assert!(reported >= dropped, "{reported} reported, {dropped} dropped");
}

#[test]
fn a_terminal_that_hangs_up() {
    let terminal = Terminal::open();
    let code = [print("up"), wait_for(BUTTON, 1), misalign_queue(), power_off(), halt()];
    let machine = machine(&code, "");
    let mut child = terminal.start(&machine);
    terminal.read_exact(&mut [0; 2]);
    drop(terminal);
    signal(&child, Signal::HUP);
    assert_eq!(wait(&mut child).code(), Some(0));
}
