//! The sleep of a queue with several engines: poll(2) on real eventfds that never blocks, with the
//! simulated clock.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::simulation::Clock;
use devices::virtio::Sleep;
use rustix::event::{PollFd, Timespec, poll};

use super::call::errno;
use super::host::is_ready;

/// Sleeps are at least this long.
const SHORTEST: Duration = Duration::from_millis(1);

/// See the module's documentation. A clone is of the same queue.
#[derive(Clone)]
pub(super) struct QueueSleep {
    clock: Clock,
    state: Arc<Mutex<SleepState>>,
}

struct SleepState {
    /// The descriptors that the sleeping worker polls; empty if it does not sleep here.
    fds: Vec<RawFd>,
    /// The end of its sleep.
    until: Option<Instant>,
    /// Its next poll ends because of the time.
    timed_out: bool,
    /// When its last sleep started.
    since: Instant,
    sleeps: u64,
    /// Polls that have found a readable descriptor.
    wakes: u64,
}

impl QueueSleep {
    pub(super) fn new(clock: Clock) -> Self {
        let state = SleepState {
            fds: Vec::new(),
            until: None,
            timed_out: false,
            since: clock.now(),
            sleeps: 0,
            wakes: 0,
        };
        Self { clock, state: Arc::new(Mutex::new(state)) }
    }

    /// Whether the worker sleeps here.
    pub(super) fn is_asleep(&self) -> bool {
        !self.state.lock().unwrap().fds.is_empty()
    }

    /// Whether the worker's poll would return.
    pub(super) fn is_signalled(&self) -> bool {
        if self.left().is_some_and(|left| left.is_zero()) {
            return true;
        }
        let state = self.state.lock().unwrap();
        // SAFETY: the worker sleeps, so that the engines and the kick that it polls are alive.
        state.fds.iter().any(|fd| is_ready(unsafe { BorrowedFd::borrow_raw(*fd) }))
    }

    /// Time left until the worker's poll ends because of the time.
    pub(super) fn left(&self) -> Option<Duration> {
        let until = self.state.lock().unwrap().until?;
        Some(until.saturating_duration_since(self.clock.now()))
    }

    /// Whether the sleep has a limit that permits requests that come due then.
    pub(super) fn ends_by(&self, due: Instant) -> bool {
        let state = self.state.lock().unwrap();
        state.until.is_some_and(|until| until <= due.max(state.since + SHORTEST))
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        let timed_out = self.left().is_some_and(|left| left.is_zero());
        let mut state = self.state.lock().unwrap();
        state.fds.clear();
        (state.until, state.timed_out) = (None, timed_out);
    }

    /// Number of polls that have found a readable descriptor.
    pub(super) fn wakes(&self) -> u64 {
        self.state.lock().unwrap().wakes
    }

    /// Number of sleeps so far.
    pub(super) fn sleeps(&self) -> u64 {
        self.state.lock().unwrap().sleeps
    }
}

impl Sleep for QueueSleep {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn poll(&mut self, fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
        let ready = poll(fds, Some(&Timespec::default()))?;
        let mut state = self.state.lock().unwrap();
        state.wakes += u64::from(ready > 0);
        if std::mem::take(&mut state.timed_out) || ready > 0 {
            return Ok(());
        }
        state.fds = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
        state.since = self.clock.now();
        state.until = limit.map(|limit| state.since + limit);
        state.sleeps += 1;
        Err(io::Error::from_raw_os_error(errno::TIME))
    }
}
