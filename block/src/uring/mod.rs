//! The io_uring engine: one ring for one queue, made and used on its worker's thread.
//!
//! The kick descriptor is polled in the same ring, so that one system call submits and waits for both.
//! The data path allocates nothing, takes no lock and blocks nowhere but in [`UringEngine::wait`].
//! Guest memory is not registered: that would pin all of it. Linux 5.13 or newer.

mod in_flight;
mod kick;
mod ring;
mod transfer;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use io_uring::IoUring;

use self::in_flight::{InFlight, Progress};
pub(crate) use self::kick::Kick;
pub use self::ring::{Answer, Ring};
use crate::host_file::{Admission, HostFile};
use crate::{Completion, EngineSetup, IoEngine, OpenError, Request, Segments, Wake};

/// See the module's documentation.
pub(crate) struct UringEngine<R: Ring = IoUring> {
    ring: R,
    /// Requests the host works on, by tag.
    slots: Box<[Option<InFlight>]>,
    /// How many of `slots` are taken. Each has exactly one entry in the ring or the kernel.
    in_flight: usize,
    /// Completions not yet reaped.
    finished: VecDeque<Completion>,
    kick: Kick,
    host: Arc<HostFile>,
    /// Being dropped: what is in flight ends with the host's next answer.
    draining: bool,
}

impl UringEngine {
    /// Makes an engine on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file again, or refuses the ring.
    pub(crate) fn new(host: Arc<HostFile>, setup: &EngineSetup<'_>) -> Result<Self, OpenError> {
        let host_error = |what| {
            let path = host.path.clone();
            move |source| OpenError::Host { path, what, source }
        };
        let kick = Kick::new(setup.kick).map_err(host_error("duplicate its kick descriptor"))?;
        let file = host.reopen().map_err(host_error("open it for an engine"))?;
        let ring = ring::make(setup.depth, &file).map_err(OpenError::NoIoUring)?;
        Self::over(ring, host, kick, setup.depth).map_err(OpenError::NoIoUring)
    }
}

impl<R: Ring> UringEngine<R> {
    /// Makes an engine over a ring with more than `depth` entries whose fixed file 0 is the disk.
    ///
    /// # Errors
    ///
    /// The kernel cannot watch the kick.
    pub(crate) fn over(ring: R, host: Arc<HostFile>, kick: Kick, depth: u16) -> io::Result<Self> {
        let depth = usize::from(depth);
        let mut engine = Self {
            ring,
            slots: std::iter::repeat_with(|| None).take(depth).collect(),
            in_flight: 0,
            finished: VecDeque::with_capacity(depth),
            kick,
            host,
            draining: false,
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

    /// Takes everything from the completion queue.
    fn harvest(&mut self) {
        while let Some(answer) = self.ring.next_answer() {
            match u16::try_from(answer.user_data) {
                Ok(tag) => self.settle(tag, answer.result),
                Err(_) => self.kick.settle(answer, &mut self.ring),
            }
        }
    }

    /// Hands the next step of a request to the ring.
    fn issue(&mut self, tag: u16) {
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        let entry = request.entry().user_data(tag.into());
        // SAFETY: the entry names the disk (a fixed file), static zeroes, or memory of the request:
        // its segments (valid until it completes, by `Segment::new`), their array and its bounce
        // buffer, which its slot keeps unmoved on the heap until the host has answered.
        let pushed = unsafe { self.ring.push(&entry) };
        if !pushed {
            // The ring has an entry for each slot, so this is a bug; but never lose a request.
            self.settle(tag, -libc::ENOBUFS);
        }
    }

    /// Takes the host's answer to a request's last entry.
    fn settle(&mut self, tag: u16, answer: i32) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let Some(request) = slot else { return };
        let result = match request.settle(answer, &self.host) {
            Progress::Again if !self.draining => return self.issue(tag),
            Progress::Again => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            // Of two requests, the kernel may have told the other one of what this one lost.
            Progress::Done(result) => result.and_then(|()| self.host.check_promise(request.op())),
        };
        if let Some(request) = slot.take() {
            self.in_flight -= 1;
            self.finish(tag, result, request.into_segments());
        }
    }

    fn finish(&mut self, tag: u16, result: io::Result<()>, segments: Segments) {
        self.finished.push_back(Completion { tag, result, segments });
    }
}

impl<R: Ring> IoEngine for UringEngine<R> {
    fn push(&mut self, request: Request) {
        let Request { tag, op, segments } = request;
        if let Admission::Settled(result) = self.host.admit(op, &segments) {
            return self.finish(tag, result, segments);
        }
        let Some(slot @ None) = self.slots.get_mut(usize::from(tag)) else {
            let misuse = Err(io::Error::from_raw_os_error(libc::EINVAL));
            return self.finish(tag, misuse, segments);
        };
        *slot = Some(InFlight::new(op, segments, &self.host));
        self.in_flight += 1;
        self.issue(tag);
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.ring.wants_entering() { self.enter(0) } else { Ok(()) }
    }

    fn reap(&mut self) -> Option<Completion> {
        if self.finished.is_empty() {
            self.harvest();
        }
        self.finished.pop_front()
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        loop {
            self.kick.check()?;
            if self.finished.is_empty() && !self.kick.is_signalled() {
                self.enter(1)?;
            } else {
                self.submit()?;
            }
            self.harvest();
            if !self.finished.is_empty() || self.kick.is_signalled() {
                return Ok(Wake { kicked: self.kick.take() });
            }
        }
    }
}

impl<R: Ring> Drop for UringEngine<R> {
    /// Waits until the host works on nothing of ours. The kick's poll ends with the ring.
    fn drop(&mut self) {
        self.draining = true;
        while self.in_flight > 0 {
            if let Err(error) = self.enter(1) {
                // Going on would free memory that the host may still write.
                tracing::error!(%error, "cannot wait for I/O in flight");
                std::process::abort();
            }
            self.harvest();
        }
    }
}
