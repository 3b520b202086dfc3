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
/// have ended.
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
    let flushes: Vec<_> = disks.all().into_iter().map(Flush::start).collect();
    let disks = flushes.iter().map(|flush| Arc::clone(&flush.disk)).collect();
    let (start, taken) = (Instant::now(), signals.taken());
    let watch = SignalWatch::start(signals, EndReporter { disks, start, taken, reports: 0 });
    let closed = close();
    flushes.into_iter().for_each(Flush::join);
    drop(watch?);
    closed
}

/// The last flush of one disk.
struct Flush {
    disk: Arc<ClosingDisk>,
    /// `None` if the flush has ended.
    thread: Option<JoinHandle<()>>,
}

struct ClosingDisk {
    managed: Arc<ManagedDisk>,
    is_flushed: AtomicBool,
}

impl Flush {
    fn start(managed: Arc<ManagedDisk>) -> Self {
        let disk = Arc::new(ClosingDisk { managed, is_flushed: AtomicBool::new(false) });
        let flushed = Arc::clone(&disk);
        let builder = thread::Builder::new().stack_size(STACK_BYTES);
        let name = format!("{}/flush", disk.managed.config.id());
        let thread = match builder.name(name).spawn(move || flushed.flush()) {
            Ok(thread) => Some(thread),
            Err(_) => {
                disk.flush();
                None
            }
        };
        Self { disk, thread }
    }

    fn join(self) {
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a flush thread panicked");
        }
    }
}

impl ClosingDisk {
    fn id(&self) -> &str {
        self.managed.config.id()
    }

    fn flush(&self) {
        let backend = self.managed.control.backend();
        if !backend.read_only()
            && let Err(error) = backend.sync()
        {
            let disk = self.id();
            tracing::error!(disk, %error, "the last flush failed: acknowledged data may be lost");
        }
        self.is_flushed.store(true, Ordering::Release);
    }

    /// The state of the disk, if the end waits for it.
    fn pending(&self) -> Option<String> {
        let stats = self.managed.control.stats();
        let in_flight: u64 = stats.iter().map(|queue| queue.in_flight.get()).sum();
        let is_flushed = self.is_flushed.load(Ordering::Acquire);
        match (in_flight, is_flushed) {
            (0, true) => None,
            (0, false) => Some(format!("{} (being flushed)", self.id())),
            (1, _) => Some(format!("{} (1 request in flight)", self.id())),
            (count, _) => Some(format!("{} ({count} requests in flight)", self.id())),
        }
    }
}

/// Reports what the end waits for, and gives up at the third signal.
struct EndReporter {
    disks: Vec<Arc<ClosingDisk>>,
    start: Instant,
    /// Signals since the start of the program.
    taken: u32,
    /// Calls of [`SignalHandler::report`].
    reports: u32,
}

impl EndReporter {
    fn pending(&self) -> String {
        let pending: Vec<_> = self.disks.iter().filter_map(|disk| disk.pending()).collect();
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
