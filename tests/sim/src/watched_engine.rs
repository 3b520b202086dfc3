//! An engine that tells its host when its first parked request comes due, so that the sleep of a
//! worker with several engines can be checked.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use block::{ByteOffset, Completion, IoEngine, Request, Segment, Wake};

use super::host::SharedHost;

/// See the module's documentation.
pub(super) struct WatchedEngine {
    pub(super) engine: Box<dyn IoEngine>,
    pub(super) host: SharedHost,
    pub(super) ring: usize,
}

impl WatchedEngine {
    fn then_tell<T>(&self, value: T) -> T {
        // That of a request that was cancelled may be left without any.
        let due = (*self.engine).due().filter(|_| (*self.engine).parked() > 0);
        self.host.lock().set_due(self.ring, due);
        value
    }
}

impl IoEngine for WatchedEngine {
    fn push(&mut self, request: Request<'_>) {
        (*self.engine).push(request);
        self.then_tell(());
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        (*self.engine).push_contiguous(tag, segment, at, is_write);
        self.then_tell(());
    }

    fn submit(&mut self) -> io::Result<()> {
        let submitted = (*self.engine).submit();
        self.then_tell(submitted)
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        (*self.engine).reap(completed);
        self.then_tell(());
    }

    fn parked(&self) -> usize {
        (*self.engine).parked()
    }

    fn due(&self) -> Option<Instant> {
        (*self.engine).due()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let is_canceled = (*self.engine).cancel(tag);
        self.then_tell(is_canceled)
    }

    fn is_ready(&self) -> bool {
        self.engine.is_ready()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.engine.poll_fd()
    }

    fn clear_poll_fd(&mut self) {
        self.engine.clear_poll_fd();
    }

    fn wait(&mut self) -> io::Result<Wake> {
        let woken = (*self.engine).wait();
        self.then_tell(woken)
    }
}
