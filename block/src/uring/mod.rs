//! The io_uring engine: one ring for one queue, made and used on its worker's thread.
//!
//! The kick descriptor is polled in the same ring, so that one system call submits and waits for
//! both. The data path allocates nothing, takes no lock and blocks only in [`UringEngine::wait`].
//! Linux 5.13 or newer.

mod entry;
mod kick_poll;
mod ring;
mod wake_signal;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue;

use self::kick_poll::KickPoll;
use self::ring::KernelRing;
pub(crate) use self::ring::push_poll;
pub use self::ring::{Ring, RingResult};
use self::wake_signal::WakeSignal;
use crate::disk_state::OpenDisk;
use crate::host_io::HostCall;
use crate::requests::Requests;
use crate::{ByteOffset, Completion, EngineSetup, IoEngine, OpenError, Request, Segment, Wake};

/// See the module's documentation.
pub(crate) struct UringEngine<R: Ring = KernelRing> {
    // Dropped first: it ends the kick's poll.
    ring: R,
    requests: Requests,
    kick: KickPoll,
    /// Once [`IoEngine::poll_fd`] was called.
    signal: Option<WakeSignal>,
}

impl UringEngine {
    /// Makes an engine on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file again, or refuses the ring.
    pub(crate) fn new(disk: &Arc<OpenDisk>, setup: &EngineSetup<'_>) -> Result<Self, OpenError> {
        let files = disk.file.open_for_engine()?;
        let fds = files.with_ranges(&disk.file);
        let path = &disk.file.path;
        let ring = ring::make(setup.depth, &fds).map_err(|error| refusal(error, path))?;
        Self::over(ring, Arc::clone(disk), setup).map_err(|error| refusal(error, path))
    }
}

/// Whether this host refuses io_uring, so that [`EngineKind::Auto`](crate::EngineKind::Auto) is the
/// thread-pool engine. Makes a ring and closes it.
#[must_use]
pub fn refuses_io_uring() -> bool {
    let refused = ring::build(1).map_err(|error| refusal(error, Path::new("")));
    matches!(refused, Err(OpenError::NoIoUring(_)))
}

/// The error for a ring that could not be made. Only an errno that says so means that the host has
/// no io_uring for this process: a lack of descriptors or memory must not change the engine.
fn refusal(error: io::Error, path: &Path) -> OpenError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => {
            OpenError::NoIoUring(error)
        }
        _ => {
            OpenError::Host { path: path.into(), what: "create an io_uring for it", source: error }
        }
    }
}

/// Pushes the entry of a call to the ring of a simulated thread pool; `false` if it is full.
pub(crate) fn push_call(ring: &mut impl Ring, tag: u16, call: &HostCall) -> bool {
    let entry = entry::entry(call).user_data(tag.into());
    // SAFETY: the memory of the call is valid until its result is handled (`HostCall`).
    unsafe { ring.push(&entry) }
}

impl<R: Ring> UringEngine<R> {
    /// Makes an engine over a ring with at least one entry more than the depth, whose fixed files
    /// are those of `EngineFiles::with_ranges`.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors, or the kernel cannot poll the kick.
    pub(crate) fn over(ring: R, disk: Arc<OpenDisk>, setup: &EngineSetup<'_>) -> io::Result<Self> {
        let requests = Requests::new(disk, setup)?;
        let mut engine = Self { ring, requests, kick: KickPoll::new(setup.kick)?, signal: None };
        engine.poll_kick()?;
        Ok(engine)
    }

    /// Starts to poll the kick, and fails if the kernel cannot.
    fn poll_kick(&mut self) -> io::Result<()> {
        self.kick.arm(&mut self.ring);
        self.enter(0, None)?;
        self.harvest();
        self.kick.check()
    }

    /// Enters the kernel with everything pushed, and waits for `want` results, at most for
    /// `timeout`. Waits for none if results had to be harvested meanwhile.
    fn enter(&mut self, mut want: usize, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want, timeout) {
                Ok(()) if !self.ring.has_unsubmitted() => return Ok(()),
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full, or the kernel short of memory: harvest to make
                    // room. The result that the caller waits for may be among
                    // them, so that it has to look before it waits again.
                    Some(libc::EBUSY | libc::EAGAIN) => {
                        self.harvest();
                        want = 0;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Takes all results from the completion queue, and submits the calls that follow.
    fn harvest(&mut self) {
        while let Some(result) = self.ring.next_result() {
            match u16::try_from(result.user_data) {
                Ok(tag) if !self.requests.handle_result(tag, result.result) => {}
                _ => self.handle_other(result.user_data, result.result, result.more),
            }
        }
        if self.requests.has_waiting() {
            self.revive();
        }
    }

    /// Handles what follows a result that has not completed a fast-path transfer.
    #[cold]
    fn handle_other(&mut self, user_data: u64, result: i32, more: bool) {
        if user_data == kick_poll::USER_DATA {
            self.kick.handle_result(RingResult { user_data, result, more }, &mut self.ring);
            self.requests.enable_claims_if_required();
        }
        self.submit_ready();
    }

    #[cold]
    fn revive(&mut self) {
        self.requests.revive();
        self.submit_ready();
    }

    /// Pushes every call that is ready to the ring.
    fn submit_ready(&mut self) {
        while let Some((tag, call)) = self.requests.next_call() {
            self.push_call(tag, &call);
        }
    }

    /// Pushes a call to the ring.
    fn push_call(&mut self, tag: u16, call: &HostCall) {
        self.push_entry(tag, entry::entry(call));
    }

    /// Pushes the entry of a call to the ring.
    #[inline]
    fn push_entry(&mut self, tag: u16, entry: squeue::Entry) {
        let entry = entry.user_data(tag.into());
        // SAFETY: the entry names fixed files and the memory of the call, which is valid until its
        // result is handled (`HostCall`).
        let pushed = unsafe { self.ring.push(&entry) };
        if !pushed {
            // A bug, as the ring has an entry for each tag; but no request may be lost.
            self.requests.handle_result(tag, -libc::ENOBUFS);
        }
    }

    #[cold]
    fn push_other(&mut self, request: Request<'_>) {
        let tag = request.tag;
        match self.requests.push(request) {
            Some(call) => self.push_call(tag, &call),
            None => self.submit_ready(),
        }
    }

    #[cold]
    fn push_segment(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        match self.requests.push_segment(tag, segment, at, is_write) {
            Some(call) => self.push_call(tag, &call),
            None => self.submit_ready(),
        }
    }

    /// How long to sleep: until waiting requests come due.
    fn timeout(&self) -> Option<Duration> {
        let due = self.requests.due()?;
        Some(due.saturating_duration_since(self.requests.now()))
    }

    fn is_awake(&self) -> bool {
        self.requests.has_completed() || self.kick.is_signalled()
    }
}

impl<R: Ring> IoEngine for UringEngine<R> {
    fn push(&mut self, request: Request<'_>) {
        match self.requests.push_fast(&request) {
            Some(transfer) => self.push_entry(request.tag, entry::fast_entry(transfer)),
            None => self.push_other(request),
        }
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        match self.requests.push_contiguous(tag, segment, at, is_write) {
            Some(transfer) => self.push_entry(tag, entry::fast_entry(transfer)),
            None => self.push_segment(tag, segment, at, is_write),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.requests.has_waiting() {
            self.revive();
        }
        if self.ring.wants_entering() { self.enter(0, None) } else { Ok(()) }
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        self.harvest();
        self.requests.take_completed(completed);
    }

    fn parked(&self) -> usize {
        self.requests.parked()
    }

    fn due(&self) -> Option<Instant> {
        self.requests.due()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let canceled = self.requests.cancel(tag);
        self.submit_ready();
        canceled
    }

    fn is_ready(&self) -> bool {
        self.is_awake()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        let signal = match self.signal.take() {
            Some(signal) => signal,
            None => {
                let signal = WakeSignal::new(self.kick.as_fd())?;
                self.ring.signal_to(signal.results())?;
                signal
            }
        };
        let signal: &WakeSignal = self.signal.insert(signal);
        Ok(signal.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        if let Some(signal) = &self.signal {
            signal.clear();
        }
        self.kick.take();
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        loop {
            self.kick.check()?;
            if self.is_awake() {
                self.submit()?;
            } else {
                self.enter(1, self.timeout())?;
            }
            self.harvest();
            if self.is_awake() {
                return Ok(Wake { kicked: self.kick.take() });
            }
        }
    }
}

impl<R: Ring> Drop for UringEngine<R> {
    /// Waits until the host works on none of the engine's calls. The poll of the kick ends with the
    /// ring.
    fn drop(&mut self) {
        self.requests.drain();
        while self.requests.submitted() > 0 {
            if let Err(error) = self.enter(1, None) {
                // Returning would free memory that the host may still write to.
                tracing::error!(%error, "cannot wait for I/O in flight");
                std::process::abort();
            }
            self.harvest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_resources_does_not_mean_that_the_host_has_no_io_uring() {
        let refusal = |errno| refusal(io::Error::from_raw_os_error(errno), Path::new("image"));
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN] {
            let error = refusal(errno);
            assert!(matches!(error, OpenError::Host { .. }), "{error}");
        }
        for errno in [libc::EPERM, libc::ENOSYS, libc::EINVAL] {
            let error = refusal(errno);
            assert!(matches!(error, OpenError::NoIoUring(_)), "{error}");
        }
    }
}
