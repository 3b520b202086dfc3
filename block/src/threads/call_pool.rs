//! The threads of an engine as it uses them, and its sleep: the seam of the simulator.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::pool::{CallResult, Pool};
use crate::host_io::HostCall;

/// User data of the events.
const KICK: u64 = 0;
const RESULTS: u64 = 1;

/// See the module's documentation.
pub(crate) trait CallPool {
    /// Submits a call. Its result comes with [`CallPool::take_results`].
    fn submit(&mut self, tag: u16, call: HostCall);

    fn take_results(&mut self) -> Vec<CallResult>;

    /// Waits until there are results.
    fn wait_for_results(&mut self);

    /// Sleeps until there are results, the kick is signalled, or the timeout. Returns whether the
    /// kick is signalled.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<bool>;

    /// See [`crate::IoEngine::poll_fd`].
    ///
    /// # Errors
    ///
    /// The host's error.
    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>>;

    /// Clears the readiness of [`CallPool::poll_fd`].
    fn clear_poll_fd(&mut self);
}

/// A pool whose results and kick are watched by an epoll instance.
pub(super) struct WatchedPool {
    pool: Pool,
    /// Watches both descriptors edge-triggered, as a ring polls the kick: neither is ever read.
    events: OwnedFd,
}

impl WatchedPool {
    /// # Errors
    ///
    /// The host refuses a descriptor.
    pub(super) fn new(pool: Pool, kick: BorrowedFd<'_>) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&events, kick, KICK)?;
        watch(&events, pool.result_signal(), RESULTS)?;
        Ok(Self { pool, events })
    }
}

fn watch(events: &OwnedFd, fd: BorrowedFd<'_>, data: u64) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(events, fd, epoll::EventData::new_u64(data), flags)?)
}

impl CallPool for WatchedPool {
    fn submit(&mut self, tag: u16, call: HostCall) {
        self.pool.submit(tag, call);
    }

    fn take_results(&mut self) -> Vec<CallResult> {
        self.pool.take_results()
    }

    fn wait_for_results(&mut self) {
        self.pool.wait_for_results();
    }

    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.map(|timeout| {
            Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let (found, _) = match epoll::wait(&self.events, &mut found, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            found => found?,
        };
        Ok(found.iter().any(|event| event.data.u64() == KICK))
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        // An edge is cleared once it was returned.
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let _ = epoll::wait(&self.events, &mut found, Some(&Timespec::default()));
    }
}
