//! The end of a machine or of a service: the disks are flushed side by side, and signals are heard.
//!
//! The host may take arbitrarily long for a disk. Its neighbours are flushed meanwhile, the user
//! learns what the program waits for, and a third signal ends it at once.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use block::Recording;
use devices::storage::error_of_disk;

use super::signal_watch::{SignalHandler, SignalWatch};
use super::signals::Signals;
use crate::console;
use crate::disks::{DiskRegistry, ManagedDisk};
use crate::exit::Exit;
use crate::log;

/// Number of signals that end the program whatever the host does.
const FORCING_SIGNALS: u32 = 3;
/// The flush thread needs little stack.
const STACK_BYTES: usize = 128 << 10;

/// Flushes `disks`, each on its own thread, while `close` stops their devices. Returns when both
/// have ended, and the logs of recorded disks are closed.
///
/// # Errors
///
/// That of `close`, or the host is out of descriptors or threads. Failed flushes are logged with
/// the name of their disk.
pub(crate) fn close(
    signals: &Arc<Signals>,
    disks: &DiskRegistry,
    close: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let flushes: Vec<_> = disks.all().iter().map(Flush::start).collect();
    let watch = SignalWatch::start(signals, EndReporter::new(disks, signals.taken()));
    let closed = close();
    // Of two flushes at the same time Linux reports a lost write to one.
    let flushed = flushes.into_iter().map(Flush::join).fold(Ok(()), Result::and);
    // Other threads may hold the disks until the program has ended.
    let disks = disks.all();
    Recording::close_all(disks.iter().filter_map(|disk| disk.recording()).map(|log| &**log));
    drop(watch?);
    closed.and(flushed)
}

/// The last flush of one disk.
enum Flush {
    Running(JoinHandle<io::Result<()>>),
    Done(io::Result<()>),
}

impl Flush {
    fn start(disk: &Arc<ManagedDisk>) -> Self {
        disk.begin_end();
        let flushed = Arc::clone(disk);
        let builder = thread::Builder::new().stack_size(STACK_BYTES);
        let name = format!("{}/flush", disk.config.id());
        match builder.name(name).spawn(move || flush(&flushed)) {
            Ok(thread) => Self::Running(thread),
            Err(_) => Self::Done(flush(disk)),
        }
    }

    fn join(self) -> io::Result<()> {
        match self {
            Self::Running(thread) => {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a flush panicked")))
            }
            Self::Done(flushed) => flushed,
        }
    }
}

fn flush(disk: &ManagedDisk) -> io::Result<()> {
    let (backend, id) = (disk.control.backend(), disk.config.id());
    let flushed = if backend.read_only() { Ok(()) } else { backend.sync() };
    disk.set_flushed();
    flushed.map_err(|error| {
        tracing::error!(disk = id, %error, "the last flush failed: acknowledged data may be lost");
        error_of_disk(id, &error)
    })
}

/// Reports the disks for which the end waits, and gives up at the third signal.
pub(crate) struct EndReporter {
    disks: Vec<Arc<ManagedDisk>>,
    /// When the end began.
    start: Instant,
    /// Signals since the start of the program.
    taken: u32,
    /// Calls of [`SignalHandler::report`].
    reports: u32,
}

impl EndReporter {
    /// A reporter after `taken` signals. The end begins now, unless it has begun before.
    pub(crate) fn new(disks: &DiskRegistry, taken: u32) -> Self {
        let disks = disks.all();
        disks.iter().for_each(|disk| disk.begin_end());
        let begun = disks.iter().filter_map(|disk| Some(disk.pending_end()?.since));
        let start = begun.min().unwrap_or_else(Instant::now);
        Self { disks, start, taken, reports: 0 }
    }

    fn pending(&self) -> String {
        let pending = self.disks.iter().filter_map(|disk| {
            let (id, pending) = (disk.config.id(), disk.pending_end()?);
            let age = disk
                .stall()
                .map_or_else(String::new, |age| format!(", the oldest for {} s", age.as_secs()));
            Some(match pending.in_flight {
                0 => format!("{id} ({pending})"),
                _ => format!("{id} ({pending}{age})"),
            })
        });
        let pending: Vec<_> = pending.collect();
        if pending.is_empty() { "the devices".to_owned() } else { pending.join(", ") }
    }

    fn print(&self) {
        let (pending, seconds) = (self.pending(), self.start.elapsed().as_secs());
        let left = FORCING_SIGNALS.saturating_sub(self.taken);
        let signals = if left == 1 { "signal ends" } else { "signals end" };
        log::print(format_args!(
            "waiting for the host for {seconds} s: {pending}; {left} more {signals} the program \
             without it"
        ));
    }
}

impl SignalHandler for EndReporter {
    fn signalled(&mut self, taken: u32) {
        self.taken = taken;
        if taken < FORCING_SIGNALS {
            return self.print();
        }
        let pending = self.pending();
        end_at_once(&format!("ended by a signal; the host did not finish: {pending}"));
    }

    fn report(&mut self) {
        self.reports += 1;
        // After 2, 4, 8, ... seconds.
        if self.reports.is_power_of_two() {
            self.print();
        }
    }
}

/// Ends the program while threads wait for the host.
fn end_at_once(message: &str) -> ! {
    log::print(message);
    log::drain();
    console::restore_terminal();
    process::exit(Exit::Stopped as i32)
}

/// Hears signals while the machine is built, which the host may hold up: the first one is to end
/// the build at its next step, the second one ends the program.
pub(crate) struct BuildInterrupter(pub(crate) Arc<AtomicBool>);

impl SignalHandler for BuildInterrupter {
    fn signalled(&mut self, taken: u32) {
        if taken == 1 {
            return self.0.store(true, Ordering::Release);
        }
        end_at_once("ended by a second signal before the guest started");
    }
}
