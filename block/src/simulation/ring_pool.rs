//! The threads of a simulated thread-pool engine: each call that a thread makes is an entry of a
//! [`Ring`], whose kernel may block for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::host_io::HostCall;
use crate::requests::THREADS;
use crate::threads::CallPool;
use crate::uring::{Ring, RingResult, push_call, push_poll};

/// User data of the poll of the kick; not a tag.
const KICK: u64 = u64::MAX;

/// See the module's documentation.
pub(super) struct RingPool<R: Ring> {
    ring: R,
    kick: OwnedFd,
    /// Calls that wait for a thread.
    waiting: VecDeque<(u16, HostCall)>,
    /// Threads that make a call.
    busy: usize,
    results: Vec<(u16, i32)>,
    is_kicked: bool,
    /// The epoll instance of a real pool: the ring signals it with each result and each kick.
    events: Option<OwnedFd>,
}

impl<R: Ring> RingPool<R> {
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(super) fn new(ring: R, kick: BorrowedFd<'_>) -> io::Result<Self> {
        let mut pool = Self {
            ring,
            kick: kick.try_clone_to_owned()?,
            waiting: VecDeque::new(),
            busy: 0,
            results: Vec::new(),
            is_kicked: false,
            events: None,
        };
        pool.poll_kick();
        Ok(pool)
    }

    /// Polls the kick, as epoll does without end.
    fn poll_kick(&mut self) {
        let pushed = push_poll(&mut self.ring, self.kick.as_fd(), KICK);
        self.submit_all(pushed);
    }

    /// Makes calls while there are idle threads.
    fn make_calls(&mut self) {
        while self.busy < THREADS
            && let Some((tag, call)) = self.waiting.pop_front()
        {
            self.busy += 1;
            let call = HostCall { may_block: true, ..call };
            let pushed = push_call(&mut self.ring, tag, &call);
            self.submit_all(pushed);
        }
    }

    fn submit_all(&mut self, pushed: bool) {
        debug_assert!(pushed, "the ring has an entry for each tag and the kick");
        while self.ring.has_unsubmitted() {
            // The kernel's refusals are transient, and a thread's system call meets none.
            let _ = self.ring.submit_and_wait(0, None);
        }
    }

    /// Moves the results from the ring to the list.
    fn collect(&mut self) {
        if self.ring.wants_entering() {
            let _ = self.ring.submit_and_wait(0, None);
        }
        while let Some(RingResult { user_data, result, more }) = self.ring.next_result() {
            match u16::try_from(user_data) {
                Ok(tag) => {
                    self.busy -= 1;
                    self.results.push((tag, result));
                    self.make_calls();
                }
                Err(_) => {
                    self.is_kicked = true;
                    if !more {
                        self.poll_kick();
                    }
                }
            }
        }
    }
}

impl<R: Ring> CallPool for RingPool<R> {
    fn submit(&mut self, tag: u16, call: HostCall) {
        self.waiting.push_back((tag, call));
        self.make_calls();
    }

    fn take_results(&mut self) -> Vec<(u16, i32)> {
        self.collect();
        std::mem::take(&mut self.results)
    }

    fn wait_for_results(&mut self) {
        while self.results.is_empty() {
            let _ = self.ring.submit_and_wait(1, None);
            self.collect();
        }
    }

    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.collect();
        if !self.is_kicked && self.results.is_empty() {
            match self.ring.submit_and_wait(1, timeout).map_err(|error| error.raw_os_error()) {
                Ok(()) | Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(errno) => {
                    return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)));
                }
            }
            self.collect();
        }
        Ok(std::mem::take(&mut self.is_kicked))
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        let events = match self.events.take() {
            Some(events) => events,
            None => {
                // Readable at first, as an instance with earlier events is.
                let events = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                self.ring.signal_to(events.as_fd())?;
                events
            }
        };
        let events: &OwnedFd = self.events.insert(events);
        Ok(events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        if let Some(events) = &self.events {
            // Would block if it was not signalled.
            let _ = rustix::io::read(events, &mut [0; 8]);
        }
    }
}
