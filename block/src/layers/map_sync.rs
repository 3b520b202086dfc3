//! The one write-back of a layer's map that runs at a time, for all engines of the disk.
//!
//! Two write-backs of one page at the same time could reach the disk in either order, and the older
//! content would take bits back that a flush has promised. So one engine writes at a time, and
//! requests of all engines that need the map durable join the next write-back: it starts after they
//! joined, and so covers the bits that they have seen.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::kick::Kick;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct MapSync {
    /// Odd while a write-back runs.
    epoch: AtomicU64,
    state: Mutex<SyncState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct SyncState {
    /// Write-backs that were started, without those that were abandoned.
    started: u64,
    /// Write-backs that have ended.
    ended: u64,
    is_running: bool,
    /// The next one has to flush the data although no new bit needs it.
    wants_flush: bool,
    /// Of the last one that has ended.
    errno: Option<i32>,
    /// Engines that wait for an end.
    waiting: Vec<Kick>,
}

impl SyncState {
    fn wait(&mut self, engine: &Kick) {
        if !self.waiting.iter().any(|kick| kick.is_same(engine)) {
            self.waiting.push(engine.clone());
        }
    }
}

/// The write-back that a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A write-back that was started.
#[derive(Debug)]
pub(super) struct Started {
    /// It has to flush the data first.
    pub(super) wants_flush: bool,
}

impl MapSync {
    /// Whether no write-back runs and none is needed, as `is_dirty` says meanwhile.
    #[inline]
    pub(super) fn is_clean(&self, is_dirty: impl FnOnce() -> bool) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        epoch.is_multiple_of(2) && !is_dirty() && self.epoch.load(Ordering::Acquire) == epoch
    }

    /// Joins the next write-back. The engine is kicked when one ends.
    pub(super) fn join(&self, by: &Kick, wants_flush: bool) -> Ticket {
        let mut state = self.lock();
        state.wants_flush |= wants_flush;
        state.wait(by);
        Ticket(state.started + 1)
    }

    /// The result of the write-back; `None` while it has not ended.
    pub(super) fn result(&self, ticket: Ticket) -> Option<io::Result<()>> {
        let state = self.lock();
        let result = state.errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        // The last one covers the bits of all before it.
        (state.ended >= ticket.0).then_some(result)
    }

    /// Starts a write-back, unless one runs: then the engine is kicked when it ends.
    pub(super) fn start(&self, by: &Kick) -> Option<Started> {
        let mut state = self.lock();
        if state.is_running {
            state.wait(by);
            return None;
        }
        Some(self.begin(&mut state))
    }

    /// Starts a write-back once none runs, unless one runs for longer than `limit`. Blocks.
    pub(super) fn start_within(&self, limit: Duration) -> Option<Started> {
        let state = self.lock();
        let waited = self.ended.wait_timeout_while(state, limit, |state| state.is_running);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then(|| self.begin(&mut state))
    }

    fn begin(&self, state: &mut SyncState) -> Started {
        state.is_running = true;
        state.started += 1;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Started { wants_flush: std::mem::take(&mut state.wants_flush) }
    }

    /// Ends the write-back that runs. Pages that were not written are marked as dirty again
    /// before.
    pub(super) fn end(&self, started: &Started, result: &io::Result<()>) {
        let errno = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let mut state = self.lock();
        state.ended = state.started;
        state.errno = result.as_ref().err().map(errno);
        // A request may first look when the next one has ended.
        state.wants_flush |= started.wants_flush && result.is_err();
        self.stop(state);
    }

    /// Ends the write-back that runs as if it had not been started.
    pub(super) fn abandon(&self, started: &Started) {
        let mut state = self.lock();
        state.started -= 1;
        state.wants_flush |= started.wants_flush;
        self.stop(state);
    }

    fn stop(&self, mut state: MutexGuard<'_, SyncState>) {
        state.is_running = false;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.ended.notify_all();
        waiting.iter().for_each(Kick::signal);
    }

    fn lock(&self) -> MutexGuard<'_, SyncState> {
        // Each change is complete when the lock is released, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn engine() -> (OwnedFd, Kick) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let kick = Kick::new(fd.as_fd()).unwrap();
        (fd, kick)
    }

    fn is_kicked(fd: &OwnedFd) -> bool {
        rustix::io::read(fd, &mut [0; 8]).is_ok()
    }

    #[test]
    fn a_request_waits_for_a_write_back_that_starts_after_it_joined() {
        let sync = MapSync::default();
        let ((fd, one), (_fd, other)) = (engine(), engine());
        assert!(sync.is_clean(|| false) && !sync.is_clean(|| true));
        let first = sync.join(&one, false);
        let started = sync.start(&one).unwrap();
        assert!(!started.wants_flush && sync.start(&other).is_none() && !sync.is_clean(|| false));
        let late = sync.join(&other, true);
        assert!(sync.result(first).is_none() && !is_kicked(&fd));
        sync.end(&started, &Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        let error = sync.result(first).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(is_kicked(&fd) && sync.result(late).is_none());
        let started = sync.start(&one).unwrap();
        assert!(started.wants_flush);
        sync.end(&started, &Err(io::ErrorKind::Other.into()));
        let started = sync.start(&one).unwrap();
        assert!(started.wants_flush, "the flush has failed");
        sync.end(&started, &Ok(()));
        assert!(sync.result(late).unwrap().is_ok());
    }

    #[test]
    fn an_abandoned_write_back_leaves_its_tickets_to_the_next_one() {
        let sync = MapSync::default();
        let (fd, kick) = engine();
        let ticket = sync.join(&kick, true);
        let started = sync.start(&kick).unwrap();
        sync.abandon(&started);
        assert!(is_kicked(&fd) && sync.result(ticket).is_none());
        assert!(sync.start(&kick).is_some() && sync.start_within(Duration::ZERO).is_none());
        sync.abandon(&Started { wants_flush: true });
        let started = sync.start_within(Duration::ZERO).unwrap();
        assert!(started.wants_flush);
        sync.end(&started, &Ok(()));
        assert!(sync.result(ticket).unwrap().is_ok());
    }

    /// The write-back that runs during the check may clean a page and fail.
    #[test]
    fn a_disk_is_not_clean_if_a_write_back_ended_during_the_check() {
        let sync = MapSync::default();
        let (_fd, kick) = engine();
        let during = || {
            let started = sync.start(&kick).unwrap();
            sync.end(&started, &Err(io::ErrorKind::Other.into()));
            false
        };
        assert!(!sync.is_clean(during));
    }
}
