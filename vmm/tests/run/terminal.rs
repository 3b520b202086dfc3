//! The terminal is in raw mode while a guest runs, and its mode is restored at every end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::guest::{
    Machine, SERIAL_STATUS, halt, power_off, print, signal, wait, wait_for, wait_until,
};

/// A pseudoterminal.
pub(crate) struct Terminal {
    controller: File,
    user: OwnedFd,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        // A child that inherited the controller would keep the terminal from hanging up.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let user = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self { controller: controller.into(), user }
    }

    /// Reads the guest's output.
    pub(crate) fn read_exact(&self, output: &mut [u8]) {
        (&self.controller).read_exact(output).unwrap();
    }

    fn mode(&self) -> Termios {
        tcgetattr(&self.user).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.mode().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    pub(crate) fn start(&self, machine: &Machine) -> Child {
        let end = || self.user.try_clone().unwrap();
        machine.command().stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }
}

fn same(before: &Termios, after: &Termios) -> bool {
    before.input_modes == after.input_modes
        && before.output_modes == after.output_modes
        && before.control_modes == after.control_modes
        && before.local_modes == after.local_modes
}

/// Runs a guest that halts, ends it with `signals`, and checks that the mode is restored.
fn restores_mode_after(signals: &[Signal]) -> Option<i32> {
    let terminal = Terminal::open();
    let before = terminal.mode();
    let machine = Machine::new(&[halt()]);
    let mut child = terminal.start(&machine);
    wait_until("raw mode", || terminal.is_raw());
    signals.iter().for_each(|&each| signal(&child, each));
    let status = wait(&mut child);
    assert!(same(&before, &terminal.mode()), "mode not restored after {signals:?}");
    status.code()
}

#[test]
fn typed_characters_reach_the_guest() {
    let terminal = Terminal::open();
    let before = terminal.mode();
    let machine = Machine::new(&[print("up"), wait_for(SERIAL_STATUS, 1), power_off(), halt()]);
    let mut child = terminal.start(&machine);
    let mut seen = [0; 2];
    terminal.read_exact(&mut seen);
    assert_eq!(&seen, b"up");
    assert!(terminal.is_raw());
    // In raw mode, Ctrl-C goes to the guest.
    (&terminal.controller).write_all(b"\x03").unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(same(&before, &terminal.mode()));
}

/// A job in the background would be stopped when it changes the terminal's mode or reads it.
#[test]
fn a_background_job_leaves_the_terminal_alone() {
    let terminal = Terminal::open();
    let before = terminal.mode();
    let machine = Machine::new(&[print("up"), power_off(), halt()]);
    let end = || terminal.user.try_clone().unwrap();
    let mut command = std::process::Command::new("setsid");
    command.args(["--ctty", "--wait", "sh", "-c", "set -m; \"$0\" run \"$1\" & wait $!"]);
    command.arg(env!("CARGO_BIN_EXE_bulkhead")).arg(machine.path("vm.toml"));
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(same(&before, &terminal.mode()));
}

#[test]
fn the_mode_is_restored_after_termination_signals() {
    assert_eq!(restores_mode_after(&[Signal::TERM]), Some(13));
    assert_eq!(restores_mode_after(&[Signal::HUP]), Some(13));
    assert_eq!(restores_mode_after(&[Signal::QUIT]), Some(13));
}

#[test]
fn the_mode_is_restored_after_fatal_signals() {
    for fatal in [Signal::ABORT, Signal::SEGV, Signal::BUS] {
        assert_eq!(restores_mode_after(&[fatal]), None, "{fatal:?} kills the process");
    }
}

#[test]
fn the_mode_is_restored_after_an_error() {
    let terminal = Terminal::open();
    let before = terminal.mode();
    let machine = Machine::new(&[halt()]);
    machine.misplace_kernel();
    let mut child = terminal.start(&machine);
    assert_eq!(wait(&mut child).code(), Some(1));
    assert!(same(&before, &terminal.mode()));
}
