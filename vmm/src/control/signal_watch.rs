//! Hears signals while the control thread waits for the host: before its loop starts and after it
//! has ended. Own thread.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::signals::Signals;
use crate::notifier::Notifier;

/// Interval of [`SignalHandler::report`].
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The reaction to signals and to the passing of time.
pub(crate) trait SignalHandler: Send + 'static {
    /// A signal arrived. `taken` is the number of signals since the start of the program.
    fn signalled(&mut self, taken: u32);

    /// Some seconds have passed.
    fn report(&mut self) {}
}

/// A running watch. Dropping it ends the watch; later signals stay pending.
pub(crate) struct SignalWatch {
    stop: Notifier,
    thread: Option<JoinHandle<()>>,
}

impl SignalWatch {
    /// Starts a thread that passes signals to `handler`.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors or threads.
    pub(crate) fn start(
        signals: &Arc<Signals>,
        mut handler: impl SignalHandler,
    ) -> io::Result<Self> {
        let (stop, signals) = (Notifier::new()?, Arc::clone(signals));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if let Err(error) = run(&signals, &stopped, &mut handler) {
                tracing::error!(%error, "signals are no longer heard");
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        if let Err(error) = self.stop.notify() {
            tracing::error!(%error, "cannot stop the thread of the signals");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the signals panicked");
        }
    }
}

fn run(signals: &Signals, stopped: &Notifier, handler: &mut impl SignalHandler) -> io::Result<()> {
    let interval = Timespec::try_from(REPORT_INTERVAL).map_err(io::Error::other)?;
    loop {
        let mut watched =
            [PollFd::new(stopped, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let ready = match poll(&mut watched, Some(&interval)) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let [stop, _] = watched.map(|fd| !fd.revents().is_empty());
        if stop {
            return Ok(());
        }
        while signals.next()?.is_some() {
            handler.signalled(signals.taken());
        }
        if ready == 0 {
            handler.report();
        }
    }
}
