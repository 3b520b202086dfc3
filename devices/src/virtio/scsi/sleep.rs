//! The sleep of a request queue with several engines: the seam of the simulator in `tests/`, which
//! has a clock of its own and never blocks.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, poll};
use rustix::io::Errno;

/// How the worker of a queue with several engines sleeps, on its thread.
pub trait Sleep: 'static {
    /// The time on the clock of [`IoEngine::due`](::block::IoEngine::due).
    fn now(&self) -> Instant;

    /// Sleeps until one of the descriptors is ready, at most for `limit`. It may also return early.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn poll(&mut self, fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()>;
}

/// poll(2) and the host's clock.
pub(super) struct HostSleep;

impl Sleep for HostSleep {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn poll(&mut self, fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| limit.try_into().ok());
        match poll(fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
