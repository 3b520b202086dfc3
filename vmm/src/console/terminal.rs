//! The terminal in raw mode, and back, whatever happens.
//!
//! Output processing stays on, so that log lines need no carriage returns of their own.

use std::io::{self, IsTerminal};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{self, OptionalActions, OutputModes, Termios};
use vmm_sys_util::signal::register_signal_handler;

/// Signals that end a program at once.
const FATAL_SIGNALS: [libc::c_int; 6] =
    [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS];

/// The mode to go back to. In statics, as a signal handler needs them.
static ORIGINAL: OnceLock<Termios> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode, for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Sets standard input to raw mode; `None` when it is no terminal.
    ///
    /// # Errors
    ///
    /// When the terminal refuses, or a handler cannot be installed.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mut raw = termios::tcgetattr(&stdin)?;
        if ORIGINAL.set(raw.clone()).is_ok() {
            restore_on_sudden_death()?;
        }
        raw.make_raw();
        raw.output_modes |= OutputModes::OPOST;
        IS_RAW.store(true, Ordering::Release);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Goes back to the original mode, if it was left. Safe to call in a signal handler: it loads two
/// statics and makes one system call.
fn restore() {
    if !IS_RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Some(original) = ORIGINAL.get() {
        // There is no one to tell of a failure.
        let _: Result<(), _> =
            termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, original);
    }
}

fn restore_on_sudden_death() -> io::Result<()> {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
    }));
    for signal in FATAL_SIGNALS {
        register_signal_handler(signal, restore_and_die)?;
    }
    Ok(())
}

extern "C" fn restore_and_die(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore();
    // SAFETY: both calls may be made in a signal handler; they let the signal do what it would have
    // done without us, as soon as this handler returns.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as above.
    unsafe { libc::raise(signal) };
}
