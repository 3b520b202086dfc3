//! The thread-pool engine, for hosts that refuse io_uring: the same calls, made as blocking system
//! calls.
//!
//! Each queue has [`THREADS`](crate::requests::THREADS) threads of its own, so that one slow
//! request does not delay the others. The worker sleeps in one `epoll_wait` for its kick, the
//! pool's results, and the time when waiting requests come due.

mod call_pool;
mod calls;
mod pool;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use self::call_pool::CallPool;
use self::call_pool::WatchedPool;
use self::pool::Pool;
use crate::disk_state::OpenDisk;
use crate::host_io::HostCall;
use crate::requests::Requests;
use crate::{ByteOffset, Completion, EngineSetup, IoEngine, OpenError, Request, Segment, Wake};

/// See the module's documentation.
pub(crate) struct ThreadEngine<P: CallPool> {
    requests: Requests,
    pool: P,
    is_kicked: bool,
}

/// Makes an engine on the thread that will use it.
///
/// # Errors
///
/// The host refuses to open the file again, or refuses descriptors or threads.
pub(crate) fn engine(
    disk: Arc<OpenDisk>,
    setup: &EngineSetup<'_>,
) -> Result<impl IoEngine + use<>, OpenError> {
    let path = disk.file.path.clone();
    let what = "start a thread-pool engine";
    let files = disk.file.open_for_engine()?;
    let make = || {
        let pool = WatchedPool::new(Pool::new(files, Arc::clone(&disk))?, setup.kick)?;
        ThreadEngine::over(pool, disk, setup)
    };
    make().map_err(|source| OpenError::Host { path, what, source })
}

impl<P: CallPool> ThreadEngine<P> {
    /// Makes an engine over a pool.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(crate) fn over(pool: P, disk: Arc<OpenDisk>, setup: &EngineSetup<'_>) -> io::Result<Self> {
        Ok(Self { requests: Requests::new(disk, setup)?, pool, is_kicked: false })
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
        let now = self.requests.now();
        let timeout = self.requests.due().map(|due| due.saturating_duration_since(now));
        self.is_kicked |= self.pool.sleep(timeout)?;
        Ok(())
    }

    fn is_awake(&self) -> bool {
        self.requests.has_completed() || self.is_kicked
    }
}

impl<P: CallPool> IoEngine for ThreadEngine<P> {
    fn push(&mut self, request: Request<'_>) {
        let tag = request.tag;
        let fast = self.requests.push_fast(&request).map(HostCall::from);
        match fast.or_else(|| self.requests.push(request)) {
            Some(call) => self.pool.submit(tag, call),
            None => self.submit_ready(),
        }
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let fast = self.requests.push_contiguous(tag, segment, at, is_write).map(HostCall::from);
        match fast.or_else(|| self.requests.push_segment(tag, segment, at, is_write)) {
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
        self.pool.poll_fd()
    }

    fn clear_poll_fd(&mut self) {
        self.pool.clear_poll_fd();
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

impl<P: CallPool> Drop for ThreadEngine<P> {
    /// Waits until the pool works on none of the engine's calls.
    fn drop(&mut self) {
        self.requests.drain();
        while self.requests.submitted() > 0 {
            self.pool.wait_for_results();
            self.harvest();
        }
    }
}
