//! Eventfds of the rings of a controller with several disks: an engine's kick, and the descriptor
//! that its worker polls. Both are real, what the kernel does with them is simulated.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Host, Ring};

/// Whether a descriptor is readable.
pub(crate) fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

impl Ring {
    /// Signals that a result was posted.
    pub(super) fn signal(&mut self) {
        if let Some(signal) = &self.signal {
            self.signals += 1;
            rustix::io::write(signal, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Whether a new poll of the kick finds it readable.
    pub(super) fn is_kicked(&self) -> bool {
        self.kicked || self.kick.as_ref().is_some_and(|kick| is_ready(kick.as_fd()))
    }
}

impl Host {
    /// The ring's engine is kicked by this eventfd.
    pub(crate) fn watch_kick(&mut self, ring: usize, kick: BorrowedFd<'_>) {
        let number = kick.as_raw_fd();
        let is_queue_kick = self.queue_kicks.contains(&number);
        let state = &mut self.rings[ring];
        state.queue_kick = is_queue_kick.then_some(number);
        state.kick = Some(kick.try_clone_to_owned().unwrap());
    }

    /// The ring's worker is woken by this eventfd.
    pub(crate) fn signal_to(&mut self, ring: usize, signal: BorrowedFd<'_>) {
        // It is readable at first.
        self.rings[ring].signals = 1;
        self.rings[ring].signal = Some(signal.try_clone_to_owned().unwrap());
    }

    /// Kicks the rings whose engines have eventfds of their own that were signalled. Nothing else
    /// reads these.
    pub(crate) fn forward_own_kicks(&mut self) {
        for ring in 0..self.rings.len() {
            let state = &self.rings[ring];
            let own = state.kick.as_ref().filter(|_| state.queue_kick.is_none());
            if own.is_some_and(|kick| rustix::io::read(kick, &mut [0; 8]).is_ok()) {
                self.kick(ring);
            }
        }
    }

    /// Kicks the rings whose engines watch the kick of a queue.
    pub(crate) fn forward_queue_kick(&mut self, queue_kick: RawFd) {
        for ring in 0..self.rings.len() {
            if self.rings[ring].kick.is_some() && self.rings[ring].queue_kick == Some(queue_kick) {
                self.kick(ring);
            }
        }
    }

    /// Whether a live ring has results that its engine has not taken.
    pub(crate) fn has_results(&self, ring: usize) -> bool {
        let state = &self.rings[ring];
        !(state.is_closed || state.results.is_empty() && state.deferred.is_empty())
    }

    /// Number of signals that may have woken the ring's worker.
    pub(crate) fn signals(&self, ring: usize) -> u64 {
        self.rings[ring].signals
    }

    /// Whether a sleep with this ring among others would end.
    pub(crate) fn is_signalled(&self, ring: usize) -> bool {
        self.rings[ring].signal.as_ref().is_some_and(|signal| is_ready(signal.as_fd()))
    }

    /// The ring's engine does not sleep in it.
    pub(crate) fn clear_deadline(&mut self, ring: usize) {
        self.rings[ring].deadline_ns = None;
    }

    pub(crate) fn set_due(&mut self, ring: usize, due: Option<Instant>) {
        self.rings[ring].due = due;
    }

    /// When the first parked request of a live engine comes due.
    pub(crate) fn due(&self, ring: usize) -> Option<Instant> {
        let state = &self.rings[ring];
        state.due.filter(|_| !state.is_closed)
    }

    /// Stops or starts.
    pub(crate) fn set_frozen(&mut self, frozen: bool) {
        if self.frozen != frozen {
            self.frozen = frozen;
            self.log(|| if frozen { "host stops".into() } else { "host continues".into() });
            self.frozen_until_ns = Some(self.now_ns);
        }
    }

    /// Time since it was last stopped, or since the start.
    pub(crate) fn running_ns(&self) -> u64 {
        self.now_ns - self.frozen_until_ns.unwrap_or_default()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }
}
