//! Signals that end a command which cleans up first.
//!
//! They have a handler, and are not blocked: checks would inherit that, and could not be ended.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

use crate::sys;

/// From Ctrl-C, a service manager and a closed terminal.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// Interval in which a signal is looked for.
const PERIOD: Duration = Duration::from_millis(50);

/// Signals that were heard.
static HEARD: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HEARD.fetch_add(1, Ordering::Relaxed);
}

/// Lets the signals no longer end the program, except those that its parent ignores.
///
/// # Errors
///
/// The host's error.
pub(super) fn hear_signals() -> io::Result<()> {
    for signal in SIGNALS {
        if !sys::is_signal_ignored(signal)? {
            register_signal_handler(signal, note)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
    }
    Ok(())
}

/// Whether a signal arrived.
pub(super) fn is_interrupted() -> bool {
    HEARD.load(Ordering::Relaxed) > 0
}

/// Waits for a signal.
pub(super) fn wait_for_signal() {
    while !is_interrupted() {
        thread::sleep(PERIOD);
    }
}

/// Runs a task, and calls `stop` on another thread when a signal arrives.
pub(super) fn until_interrupted<T>(stop: impl FnOnce() + Send, task: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                if is_interrupted() {
                    return stop();
                }
                thread::sleep(PERIOD);
            }
        });
        let outcome = task();
        is_done.store(true, Ordering::Relaxed);
        outcome
    })
}
