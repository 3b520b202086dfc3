//! The thread pool engine, for hosts that refuse io_uring: the same requests, asked by system calls that block.
//!
//! Each queue has [`pool::THREADS`] threads of its own, so that one slow request does not hold up the others.
//! The worker sleeps in one `epoll_wait` for its kick, the pool's answers, and the time to try again what
//! is held for want of space.

mod calls;
mod pool;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll;

use self::pool::Pool;
pub(crate) use self::pool::THREADS;
use crate::host_file::HostFile;
use crate::requests::Requests;
use crate::steps::{Call, SimpleTransfer};
use crate::{Completion, EngineSetup, IoEngine, OpenError, Request, Wake};

/// What an event is about.
const KICK: u64 = 0;
const ANSWERS: u64 = 1;

/// See the module's documentation.
pub(crate) struct ThreadEngine {
    requests: Requests,
    pool: Pool,
    /// Both descriptors in it are edge-triggered, as the kick is in a ring: nobody has to read them.
    events: OwnedFd,
    kicked: bool,
}

impl ThreadEngine {
    /// Makes an engine on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file again, descriptors, or threads.
    pub(crate) fn new(host: Arc<HostFile>, setup: &EngineSetup<'_>) -> Result<Self, OpenError> {
        let path = host.path.clone();
        let refused = |what| move |source| OpenError::Host { path, what, source };
        let files = host.open_for_engine()?;
        let make = || {
            let pool = Pool::new(files, Arc::clone(&host))?;
            let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            watch(&events, setup.kick, KICK)?;
            watch(&events, pool.answered(), ANSWERS)?;
            Ok(Self { requests: Requests::new(host, setup)?, pool, events, kicked: false })
        };
        make().map_err(refused("start an engine of threads"))
    }

    /// Takes the pool's answers, and asks what is to be asked next.
    fn harvest(&mut self) {
        for (tag, answer) in self.pool.take_answers() {
            self.requests.settle(tag, answer);
        }
        self.requests.heed_claims();
        if self.requests.has_set_aside() {
            self.requests.revive();
        }
        self.issue();
    }

    fn issue(&mut self) {
        while let Some((tag, call)) = self.requests.next_call() {
            self.ask(tag, call);
        }
    }

    fn ask(&mut self, tag: u16, call: Call) {
        // SAFETY: the call names static zeroes or memory of the request: its segments (valid until it
        // completes, by `Segment::new`), their array and its bounce buffer, which its slot keeps
        // unmoved on the heap until the pool has answered.
        unsafe { self.pool.ask(tag, call) };
    }

    /// Sleeps until something happens, or what is set aside is due.
    fn sleep(&mut self) -> io::Result<()> {
        let due = [self.requests.due(), self.requests.trims_due()].into_iter().flatten().min();
        let timeout = due.map(|due| {
            let left =
                due.saturating_duration_since(self.requests.now()) + Duration::from_millis(1);
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let (found, _) = match epoll::wait(&self.events, &mut found, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            found => found?,
        };
        self.kicked |= found.iter().any(|event| event.data.u64() == KICK);
        Ok(())
    }
}

fn watch(events: &OwnedFd, fd: BorrowedFd<'_>, what: u64) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(events, fd, epoll::EventData::new_u64(what), flags)?)
}

impl IoEngine for ThreadEngine {
    fn push(&mut self, request: Request<'_>) {
        let tag = request.tag;
        let simple = self.requests.push_simple(&request).map(SimpleTransfer::call);
        match simple.or_else(|| self.requests.push(request)) {
            Some(call) => self.ask(tag, call),
            None => self.issue(),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
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
        self.requests.has_finished() || self.kicked
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        // Edges are gone once they were looked at.
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.events, &mut found, Some(&at_once));
        self.kicked = false;
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        while !self.requests.has_finished() && !self.kicked {
            self.sleep()?;
            self.harvest();
        }
        Ok(Wake { kicked: std::mem::take(&mut self.kicked) })
    }
}

impl Drop for ThreadEngine {
    /// Waits until the pool works on nothing of ours.
    fn drop(&mut self) {
        self.requests.drain();
        while self.requests.asked() > 0 {
            self.pool.wait_for_answers();
            self.harvest();
        }
    }
}
