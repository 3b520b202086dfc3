//! The io_uring engine: one ring for one queue, made and used on its worker's thread.
//!
//! The kick descriptor is polled in the same ring, so that one system call submits and waits for both.
//! The data path allocates nothing, takes no lock and blocks nowhere but in [`UringEngine::wait`].
//! Linux 5.13 or newer.

mod alarm;
mod entry;
mod kick;
mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::squeue;
use rustix::event::{EventfdFlags, eventfd};

use self::alarm::Alarm;
use self::kick::Kick;
use self::ring::KernelRing;
pub use self::ring::{Answer, Ring};
use crate::host_file::HostFile;
use crate::requests::Requests;
use crate::steps::Call;
use crate::{Completion, EngineSetup, IoEngine, OpenError, Request, Wake};

/// See the module's documentation.
pub(crate) struct UringEngine<R: Ring = KernelRing> {
    // The ring is dropped first: it ends the kick's poll and the alarms, whose memory follows.
    ring: R,
    requests: Requests,
    kick: Kick,
    /// For what is held for want of space.
    held_alarm: Alarm,
    /// For discards, whose times are much shorter.
    trims_alarm: Alarm,
    /// Signalled with each entry of the completion queue, once somebody wants to sleep on it.
    signal: Option<OwnedFd>,
}

impl UringEngine {
    /// Makes an engine on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file again, or refuses the ring.
    pub(crate) fn new(host: Arc<HostFile>, setup: &EngineSetup<'_>) -> Result<Self, OpenError> {
        let files = host.open_for_engine()?;
        let ring =
            ring::make(setup.depth, &files.with_ranges(&host)).map_err(OpenError::NoIoUring)?;
        Self::over(ring, host, setup).map_err(OpenError::NoIoUring)
    }
}

impl<R: Ring> UringEngine<R> {
    /// Makes an engine over a ring with at least three entries more than the depth, whose fixed files are those of
    /// `EngineFiles::with_ranges`.
    ///
    /// # Errors
    ///
    /// The host gives no more descriptors, or the kernel cannot watch the kick.
    pub(crate) fn over(ring: R, host: Arc<HostFile>, setup: &EngineSetup<'_>) -> io::Result<Self> {
        let mut engine = Self {
            ring,
            requests: Requests::new(host, setup)?,
            kick: Kick::new(setup.kick)?,
            held_alarm: Alarm::new(alarm::HELD),
            trims_alarm: Alarm::new(alarm::TRIMS),
            signal: None,
        };
        engine.watch_kick()?;
        Ok(engine)
    }

    /// Starts to poll the kick, and finds out at once when the kernel cannot.
    fn watch_kick(&mut self) -> io::Result<()> {
        self.kick.arm(&mut self.ring);
        self.enter(0)?;
        self.harvest();
        self.kick.check()
    }

    /// Enters the kernel with everything pushed, and waits for `want` entries of the completion queue, but
    /// not beyond the harvest of some.
    fn enter(&mut self, mut want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(()) if !self.ring.has_unsubmitted() => return Ok(()),
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full, or the kernel short of memory: make room. What the
                    // caller waits for may have been there: it has to look before it waits again.
                    Some(libc::EBUSY | libc::EAGAIN) => {
                        self.harvest();
                        want = 0;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Takes everything from the completion queue, and asks what is to be asked next.
    fn harvest(&mut self) {
        while let Some(answer) = self.ring.next_answer() {
            match u16::try_from(answer.user_data) {
                Ok(tag) if !self.requests.settle(tag, answer.result) => {}
                _ => self.go_on(answer.user_data, answer.result, answer.more),
            }
        }
        if self.requests.has_set_aside() {
            self.revive();
        }
    }

    /// What follows an answer that has not completed a request.
    #[cold]
    fn go_on(&mut self, user_data: u64, result: i32, more: bool) {
        let answer = Answer { user_data, result, more };
        match user_data {
            alarm::HELD => self.held_alarm.rang(),
            alarm::TRIMS => self.trims_alarm.rang(),
            kick::USER_DATA => {
                self.kick.settle(answer, &mut self.ring);
                self.requests.heed_claims();
                self.issue();
            }
            _ => self.issue(),
        }
    }

    #[cold]
    fn revive(&mut self) {
        self.requests.revive();
        self.issue();
        if let Some(due) = self.requests.due() {
            self.held_alarm.arm(due, self.requests.now(), &mut self.ring);
        }
        if let Some(due) = self.requests.trims_due() {
            self.trims_alarm.arm(due, self.requests.now(), &mut self.ring);
        }
    }

    /// Hands every call that is ready to the ring.
    fn issue(&mut self) {
        while let Some((tag, call)) = self.requests.next_call() {
            self.ask(tag, &call);
        }
    }

    /// Hands a call to the ring.
    fn ask(&mut self, tag: u16, call: &Call) {
        self.enqueue(tag, entry::entry(call));
    }

    /// Hands an entry of a request to the ring.
    #[inline]
    fn enqueue(&mut self, tag: u16, entry: squeue::Entry) {
        let entry = entry.user_data(tag.into());
        // SAFETY: the entry names the disk (a fixed file), static zeroes, or memory of the request:
        // its segments (valid until it completes, by `Segment::new`), their array and its bounce
        // buffer, which its slot keeps unmoved on the heap until the host has answered.
        let pushed = unsafe { self.ring.push(&entry) };
        if !pushed {
            // The ring has an entry for each slot, so this is a bug; but never lose a request.
            self.requests.settle(tag, -libc::ENOBUFS);
        }
    }

    #[cold]
    fn push_other(&mut self, request: Request<'_>) {
        let tag = request.tag;
        match self.requests.push(request) {
            Some(call) => self.ask(tag, &call),
            None => self.issue(),
        }
    }
}

impl<R: Ring> IoEngine for UringEngine<R> {
    fn push(&mut self, request: Request<'_>) {
        match self.requests.push_simple(&request) {
            Some(transfer) => self.enqueue(request.tag, entry::simple(transfer)),
            None => self.push_other(request),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.requests.has_set_aside() {
            // Who sleeps on the descriptor is woken by the alarms.
            self.revive();
        }
        if self.ring.wants_entering() { self.enter(0) } else { Ok(()) }
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        self.harvest();
        self.requests.take_finished(completed);
    }

    fn parked(&self) -> usize {
        self.requests.held()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let canceled = self.requests.cancel(tag);
        self.issue();
        canceled
    }

    fn is_ready(&self) -> bool {
        self.requests.has_finished() || self.kick.is_signalled()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        let signal = match self.signal.take() {
            Some(signal) => signal,
            None => {
                // What is there already signals nothing.
                let signal = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                self.ring.signal_to(signal.as_fd())?;
                signal
            }
        };
        let signal: &OwnedFd = self.signal.insert(signal);
        Ok(signal.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        if let Some(signal) = &self.signal {
            // Empty if it was silent.
            let _ = rustix::io::read(signal, &mut [0; 8]);
        }
        self.kick.take();
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        loop {
            self.kick.check()?;
            if !self.requests.has_finished() && !self.kick.is_signalled() {
                self.enter(1)?;
            } else {
                self.submit()?;
            }
            self.harvest();
            if self.requests.has_finished() || self.kick.is_signalled() {
                return Ok(Wake { kicked: self.kick.take() });
            }
        }
    }
}

impl<R: Ring> Drop for UringEngine<R> {
    /// Waits until the host works on nothing of ours. The kick's poll and the alarms end with the ring.
    fn drop(&mut self) {
        self.requests.drain();
        while self.requests.asked() > 0 {
            if let Err(error) = self.enter(1) {
                // Going on would free memory that the host may still write.
                tracing::error!(%error, "cannot wait for I/O in flight");
                std::process::abort();
            }
            self.harvest();
        }
    }
}
