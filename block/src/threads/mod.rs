//! The thread-pool engine, for hosts that refuse io_uring: the same calls, made as blocking system
//! calls.
//!
//! Each queue has [`THREADS`](crate::requests::THREADS) threads of its own, so that one slow
//! request does not delay the others. The worker sleeps in one `epoll_wait` for its kick, the
//! pool's results, and the time when waiting requests come due.

mod calls;
mod pool;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll;

use self::pool::Pool;
use crate::disk_state::OpenDisk;
use crate::host_io::HostCall;
use crate::requests::Requests;
use crate::{Completion, EngineSetup, IoEngine, OpenError, Request, Wake};

/// User data of the events.
const KICK: u64 = 0;
const RESULTS: u64 = 1;

/// See the module's documentation.
pub(crate) struct ThreadEngine {
    requests: Requests,
    pool: Pool,
    /// Watches both descriptors edge-triggered, as a ring polls the kick: neither is ever read.
    events: OwnedFd,
    is_kicked: bool,
}

impl ThreadEngine {
    /// Makes an engine on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses to open the file again, or refuses descriptors or threads.
    pub(crate) fn new(disk: Arc<OpenDisk>, setup: &EngineSetup<'_>) -> Result<Self, OpenError> {
        let path = disk.file.path.clone();
        let what = "start a thread-pool engine";
        let files = disk.file.open_for_engine()?;
        let make = || {
            let pool = Pool::new(files, Arc::clone(&disk))?;
            let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            watch(&events, setup.kick, KICK)?;
            watch(&events, pool.result_signal(), RESULTS)?;
            Ok(Self { requests: Requests::new(disk, setup)?, pool, events, is_kicked: false })
        };
        make().map_err(|source| OpenError::Host { path, what, source })
    }

    /// Takes the pool's results, and submits the calls that follow.
    fn harvest(&mut self) {
        for (tag, result) in self.pool.take_results() {
            self.requests.handle_result(tag, result);
        }
        self.requests.enable_claims_if_required();
        self.revive();
    }

    /// Readies the requests that need not wait any longer, and submits the calls that are ready.
    fn revive(&mut self) {
        if self.requests.has_waiting() {
            self.requests.revive();
        }
        self.submit_ready();
    }

    fn submit_ready(&mut self) {
        while let Some((tag, call)) = self.requests.next_call() {
            self.pool.submit(tag, call);
        }
    }

    /// Sleeps until an event, or until waiting requests come due.
    fn sleep(&mut self) -> io::Result<()> {
        let timeout = self.requests.due().map(|due| {
            let left = due.saturating_duration_since(self.requests.now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let (found, _) = match epoll::wait(&self.events, &mut found, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            found => found?,
        };
        self.is_kicked |= found.iter().any(|event| event.data.u64() == KICK);
        Ok(())
    }

    fn is_awake(&self) -> bool {
        self.requests.has_completed() || self.is_kicked
    }
}

fn watch(events: &OwnedFd, fd: BorrowedFd<'_>, data: u64) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(events, fd, epoll::EventData::new_u64(data), flags)?)
}

impl IoEngine for ThreadEngine {
    fn push(&mut self, request: Request<'_>) {
        let tag = request.tag;
        let fast = self.requests.push_fast(&request).map(HostCall::from);
        match fast.or_else(|| self.requests.push(request)) {
            Some(call) => self.pool.submit(tag, call),
            None => self.submit_ready(),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.revive();
        Ok(())
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
        Ok(self.events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        // An edge is cleared once it was returned.
        let mut found = [const { std::mem::MaybeUninit::uninit() }; 2];
        let _ = epoll::wait(&self.events, &mut found, Some(&Timespec::default()));
        self.is_kicked = false;
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        while !self.is_awake() {
            self.sleep()?;
            self.harvest();
        }
        Ok(Wake { kicked: std::mem::take(&mut self.is_kicked) })
    }
}

impl Drop for ThreadEngine {
    /// Waits until the pool works on none of the engine's calls.
    fn drop(&mut self) {
        self.requests.drain();
        while self.requests.submitted() > 0 {
            self.pool.wait_for_results();
            self.harvest();
        }
    }
}
