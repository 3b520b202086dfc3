//! Who may change which blocks of a disk, where a change must find them as it has read them.
//!
//! Two kinds of requests read before they write: a write of parts of the blocks that direct I/O moves, which reads
//! them, puts its bytes in and writes them back, and a compare-and-write. A change to the same blocks in between,
//! from this queue or another, would be undone or overlooked. So every change claims its blocks first.
//!
//! Where only compare-and-write needs that, nobody claims anything until the first one comes. It requires claims
//! for good: each engine of the disk is kicked, claims from then on, and says so once the changes that it began
//! without a claim are done. Until all have, no compare-and-write begins.
//!
//! Nobody blocks: a claim that is not free is waited for in its engine, which is kicked when it may have
//! become free. Claims are served in the order they were made, each request has one, and none is kept
//! while its request is held for want of space, so that nobody starves and nothing can lock up.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The claims on one disk.
#[derive(Debug)]
pub(crate) struct RangeLock {
    /// Bytes of a block.
    unit: u64,
    /// Whether every change has to be claimed. Stays so once it is.
    required: AtomicBool,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order they were made.
    claims: Vec<Entry>,
    /// The disk's engines.
    engines: Vec<Engine>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    bytes: Range<u64>,
    /// It needs all others to be claimed.
    compares: bool,
    waiting: bool,
    kick: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Engine {
    kick: Arc<OwnedFd>,
    /// Nothing that it changes is without a claim.
    claims: bool,
}

/// A claim on a range, free or waited for. To be given to [`RangeLock::release`].
#[derive(Debug)]
#[must_use = "a claim that is not released blocks its range for ever"]
pub(crate) struct Claim(u64);

/// An engine's end of the lock: how it is woken.
#[derive(Clone, Debug)]
pub(crate) struct Claimant(Arc<OwnedFd>);

impl RangeLock {
    /// A lock on blocks of `unit` bytes.
    pub(crate) fn new(unit: u32, required: bool) -> Self {
        let required = AtomicBool::new(required);
        Self { unit: unit.into(), required, next: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Whether every change has to be claimed.
    pub(crate) fn is_required(&self) -> bool {
        self.required.load(Ordering::Acquire)
    }

    /// A new engine, to be taken away by [`RangeLock::leave`], and whether it has to claim what it changes from its start. If
    /// not, it is kicked when it has to.
    ///
    /// # Errors
    ///
    /// The host gives no more descriptors.
    pub(crate) fn enter(&self, kick: BorrowedFd<'_>) -> io::Result<(Claimant, bool)> {
        let kick = Arc::new(kick.try_clone_to_owned()?);
        let mut state = self.lock();
        let claims = self.is_required();
        state.engines.push(Engine { kick: Arc::clone(&kick), claims });
        Ok((Claimant(kick), claims))
    }

    /// An engine has ended.
    pub(crate) fn leave(&self, claimant: &Claimant) {
        self.change(claimant, |state| {
            state.engines.retain(|engine| !Arc::ptr_eq(&engine.kick, &claimant.0));
        });
    }

    /// From now on every change has to be claimed. The engines are kicked.
    pub(crate) fn require(&self) {
        let state = self.lock();
        if !self.required.swap(true, Ordering::AcqRel) {
            state.engines.iter().for_each(|engine| kick(&engine.kick));
        }
    }

    /// An engine claims whatever it changes, and all is done that it began before without a claim.
    pub(crate) fn claims_all(&self, claimant: &Claimant) {
        self.change(claimant, |state| {
            for engine in &mut state.engines {
                engine.claims |= Arc::ptr_eq(&engine.kick, &claimant.0);
            }
        });
    }

    /// Claims every block that `bytes` touch; for a request that compares what others must not change, if
    /// `compares`. Returns whether they are free for it already.
    pub(crate) fn claim(&self, by: &Claimant, bytes: &Range<u64>, compares: bool) -> (Claim, bool) {
        let start = bytes.start - bytes.start % self.unit;
        let end = bytes.end.checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        let mut state = self.lock();
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let kick = Arc::clone(&by.0);
        let mut entry = Entry { ticket, bytes: start..end, compares, waiting: true, kick };
        entry.waiting = state.must_wait(&entry, state.claims.len());
        let free = !entry.waiting;
        state.claims.push(entry);
        (Claim(ticket), free)
    }

    /// Whether the claimed blocks are free for it.
    pub(crate) fn is_free(&self, claim: &Claim) -> bool {
        self.lock().claims.iter().any(|entry| entry.ticket == claim.0 && !entry.waiting)
    }

    /// Gives a claim up, and kicks the engines whose claims have become free by that, but for that of `by`.
    #[expect(clippy::needless_pass_by_value, reason = "a released claim is gone")]
    pub(crate) fn release(&self, by: &Claimant, claim: Claim) {
        self.change(by, |state| state.claims.retain(|entry| entry.ticket != claim.0));
    }

    /// Changes what claims may wait for.
    fn change(&self, by: &Claimant, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let freed = state.free();
        drop(state);
        for freed in freed.iter().filter(|freed| !Arc::ptr_eq(freed, &by.0)) {
            kick(freed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are pushed or removed whole, so that a panic elsewhere leaves nothing broken.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a claim must wait that has `before` others before it.
    fn must_wait(&self, entry: &Entry, before: usize) -> bool {
        let unclaimed = entry.compares && self.engines.iter().any(|engine| !engine.claims);
        unclaimed
            || self.claims.iter().take(before).any(|other| overlap(&other.bytes, &entry.bytes))
    }

    /// Frees the claims that need not wait any more, and returns how their engines are kicked.
    fn free(&mut self) -> Vec<Arc<OwnedFd>> {
        let must_wait =
            |(place, entry): (usize, &Entry)| entry.waiting && self.must_wait(entry, place);
        let waiting: Vec<bool> = self.claims.iter().enumerate().map(must_wait).collect();
        let mut freed = Vec::new();
        for (entry, waiting) in self.claims.iter_mut().zip(waiting) {
            if entry.waiting && !waiting {
                entry.waiting = false;
                freed.push(Arc::clone(&entry.kick));
            }
        }
        freed
    }
}

fn kick(kick: &OwnedFd) {
    // It fails only when the counter is full, and then the descriptor is readable anyway.
    if let Err(error) = rustix::io::write(kick, &1u64.to_ne_bytes()) {
        tracing::warn!(%error, "cannot wake the engine that waits for a range");
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::EventfdFlags;

    use super::*;

    fn claimant(lock: &RangeLock) -> (OwnedFd, Claimant) {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let kick = rustix::event::eventfd(0, flags).unwrap();
        let (claimant, claims) = lock.enter(kick.as_fd()).unwrap();
        assert_eq!(claims, lock.is_required());
        (kick, claimant)
    }

    fn is_kicked(kick: &OwnedFd) -> bool {
        rustix::io::read(kick, &mut [0; 8]).is_ok()
    }

    #[test]
    fn claims_on_one_block_are_served_in_their_order() {
        let lock = RangeLock::new(4096, true);
        let ((_, one), (kick, two)) = (claimant(&lock), claimant(&lock));
        let (first, free) = lock.claim(&one, &(0..512), false);
        assert!(free);
        let (second, free) = lock.claim(&two, &(3584..4608), false);
        assert!(!free, "another sector of the same block");
        let (third, free) = lock.claim(&one, &(4096..8192), false);
        assert!(!free, "behind the second, although nobody writes there yet");
        let (elsewhere, free) = lock.claim(&two, &(8192..8704), true);
        assert!(free);
        lock.release(&one, first);
        assert!(lock.is_free(&second) && is_kicked(&kick) && !lock.is_free(&third));
        lock.release(&two, elsewhere);
        assert!(!lock.is_free(&third) && !is_kicked(&kick));
        lock.release(&two, second);
        assert!(lock.is_free(&third));
        lock.release(&one, third);
        assert!(lock.lock().claims.is_empty());
    }

    #[test]
    fn what_compares_waits_until_every_engine_claims() {
        let lock = RangeLock::new(1, false);
        let ((_, one), (kick, two)) = (claimant(&lock), claimant(&lock));
        lock.require();
        assert!(lock.is_required() && is_kicked(&kick));
        lock.claims_all(&one);
        let (claim, free) = lock.claim(&one, &(0..512), true);
        assert!(!free, "the other engine may be writing there");
        let (write, free) = lock.claim(&one, &(512..1024), false);
        assert!(free);
        let (late, three) = claimant(&lock);
        assert!(!lock.is_free(&claim));
        lock.leave(&two);
        assert!(lock.is_free(&claim), "an engine that came later claims from its start");
        lock.release(&one, claim);
        lock.release(&one, write);
        lock.leave(&three);
        assert!(!is_kicked(&late));
        assert_eq!(lock.lock().engines.len(), 1);
    }
}
