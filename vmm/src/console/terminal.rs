//! The terminal's raw mode, and the restoration of its mode at every end of the program.
//!
//! Output processing stays on, so that log lines need no carriage returns.

use std::io::{self, IsTerminal};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::getpgrp;
use rustix::termios::{self, OptionalActions, OutputModes, Termios};
use vmm_sys_util::signal::register_signal_handler;

use crate::sys;

/// Signals of a crash.
const FATAL_SIGNALS: [libc::c_int; 6] =
    [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS];

/// The original mode. Static, because signal handlers restore it.
static ORIGINAL: OnceLock<Termios> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode. Dropping this restores the mode.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Sets standard input to raw mode; `None` if it is not a terminal, or belongs to another job.
    ///
    /// # Errors
    ///
    /// The mode cannot be set, or a signal handler not be installed.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || is_in_background() {
            return Ok(None);
        }
        let mut raw = termios::tcgetattr(&stdin)?;
        if ORIGINAL.set(raw.clone()).is_ok() {
            restore_on_crash()?;
        }
        raw.make_raw();
        raw.output_modes |= OutputModes::OPOST;
        IS_RAW.store(true, Ordering::Release);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

/// Whether standard input is a terminal that another job uses. Reading it, or changing its mode,
/// would stop the program (SIGTTIN, SIGTTOU).
pub(super) fn is_in_background() -> bool {
    termios::tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the original mode, if the terminal is in raw mode. Async-signal-safe: loads two statics
/// and makes one system call.
pub(crate) fn restore() {
    if !IS_RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Some(original) = ORIGINAL.get() {
        // A failure cannot be reported from a signal handler.
        let _: Result<(), _> =
            termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, original);
    }
}

fn restore_on_crash() -> io::Result<()> {
    let print_panic = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        print_panic(info);
    }));
    for signal in FATAL_SIGNALS {
        register_signal_handler(signal, restore_and_reraise)?;
    }
    Ok(())
}

extern "C" fn restore_and_reraise(
    signal: libc::c_int,
    _: *mut libc::siginfo_t,
    _: *mut libc::c_void,
) {
    restore();
    sys::reraise_with_default_action(signal);
}
