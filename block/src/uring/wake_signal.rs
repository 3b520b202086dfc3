//! The descriptor by which a ring is awaited together with other engines: readable when a result
//! was posted, or the kick signalled.
//!
//! The eventfd of the ring alone is not enough. The kernel queues a result of the kick's poll in
//! the call that signals the kick, and may not signal an eventfd within that of another one. It
//! defers the signal, and since Linux 6.11 delivers only the first one (`io_eventfd_do_signal` in
//! io_uring/eventfd.c leaves the mark of a deferred signal set). Results that are queued behind
//! that of the kick are not signalled either. So the kick is watched by itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct WakeSignal {
    /// Signalled with each entry of the completion queue.
    results: OwnedFd,
    /// Watches it and the kick, whose counter is never read: for changes only.
    both: OwnedFd,
}

impl WakeSignal {
    /// Readable at first: results may be in the completion queue already.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(super) fn new(kick: BorrowedFd<'_>) -> io::Result<Self> {
        let results = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (data, readable) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        epoll::add(&both, &results, data, readable)?;
        epoll::add(&both, kick, data, readable | epoll::EventFlags::ET)?;
        Ok(Self { results, both })
    }

    /// The eventfd that the ring is to signal.
    pub(super) fn results(&self) -> BorrowedFd<'_> {
        self.results.as_fd()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.both.as_fd()
    }

    /// Makes it unreadable until the next result or kick.
    pub(super) fn clear(&self) {
        // Would block if it was not signalled.
        let _ = rustix::io::read(&self.results, &mut [0; 8]);
        let none =
            epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        // An error leaves it readable.
        let _ = epoll::wait(&self.both, &mut [none; 2], Some(&Timespec::default()));
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(signal: &WakeSignal) -> bool {
        let fd = signal.as_fd();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn results_and_each_kick_make_it_readable_until_it_is_cleared() {
        let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let signal = WakeSignal::new(kick.as_fd()).unwrap();
        assert!(is_readable(&signal), "results may be there");
        signal.clear();
        assert!(!is_readable(&signal));
        for fd in [kick.as_fd(), kick.as_fd(), signal.results()] {
            rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
            assert!(is_readable(&signal));
            signal.clear();
            assert!(!is_readable(&signal));
        }
    }
}
