//! Who may change which blocks of a disk, where a write may have to read them first.
//!
//! Shared by all engines of a disk whose direct I/O wants larger blocks than its guest writes. Such a write
//! reads the blocks at its ends, puts its bytes in and writes them back: a write to the rest of the same block
//! in between, from this queue or another, would be undone. So every change claims its blocks first.
//!
//! Nobody blocks: a claim that is not free is waited for in its engine, which is kicked when it may have
//! become free. Claims are served in the order they were made, each request has one, and none is kept
//! while its request is held for want of space, so that nobody starves and nothing can lock up.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The claims on one disk.
#[derive(Debug)]
pub(crate) struct RangeLock {
    /// Bytes of a block.
    unit: u64,
    next: AtomicU64,
    /// In the order they were made.
    claims: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    bytes: Range<u64>,
    waiting: bool,
    kick: Arc<OwnedFd>,
}

/// A claim on a range, free or waited for. To be given to [`RangeLock::release`].
#[derive(Debug)]
#[must_use = "a claim that is not released blocks its range for ever"]
pub(crate) struct Claim(u64);

/// An engine's end of the lock: how it is woken.
#[derive(Clone, Debug)]
pub(crate) struct Claimant(Arc<OwnedFd>);

impl Claimant {
    /// # Errors
    ///
    /// The host gives no more descriptors.
    pub(crate) fn new(kick: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(kick.try_clone_to_owned()?)))
    }
}

impl RangeLock {
    /// A lock on blocks of `unit` bytes.
    pub(crate) fn new(unit: u32) -> Self {
        Self { unit: unit.into(), next: AtomicU64::new(0), claims: Mutex::default() }
    }

    /// Claims every block that `bytes` touch. Returns whether they are free for it already.
    pub(crate) fn claim(&self, by: &Claimant, bytes: &Range<u64>) -> (Claim, bool) {
        let start = bytes.start - bytes.start % self.unit;
        let end = bytes.end.checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        let mut claims = self.lock();
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = claims.iter().any(|other| overlap(&other.bytes, &(start..end)));
        claims.push(Entry { ticket, bytes: start..end, waiting, kick: Arc::clone(&by.0) });
        (Claim(ticket), !waiting)
    }

    /// Whether the claimed blocks are free for it.
    pub(crate) fn is_free(&self, claim: &Claim) -> bool {
        self.lock().iter().any(|entry| entry.ticket == claim.0 && !entry.waiting)
    }

    /// Gives a claim up, and kicks the engines whose claims have become free by that.
    #[expect(clippy::needless_pass_by_value, reason = "a released claim is gone")]
    pub(crate) fn release(&self, claim: Claim) {
        let mut claims = self.lock();
        let Some(place) = claims.iter().position(|entry| entry.ticket == claim.0) else { return };
        let gone = claims.remove(place);
        let mut freed = Vec::new();
        for place in place..claims.len() {
            let (before, rest) = claims.split_at_mut(place);
            let Some(entry) = rest.first_mut().filter(|entry| entry.waiting) else { continue };
            entry.waiting = before.iter().any(|other| overlap(&other.bytes, &entry.bytes));
            if !entry.waiting && !Arc::ptr_eq(&entry.kick, &gone.kick) {
                freed.push(Arc::clone(&entry.kick));
            }
        }
        drop(claims);
        for kick in freed {
            // It fails only when the counter is full, and then the descriptor is readable anyway.
            if let Err(error) = rustix::io::write(&kick, &1u64.to_ne_bytes()) {
                tracing::warn!(%error, "cannot wake the engine that waits for a range");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // A claim is pushed or removed whole, so that a panic elsewhere leaves nothing broken.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn claimant() -> (OwnedFd, Claimant) {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let kick = rustix::event::eventfd(0, flags).unwrap();
        let claimant = Claimant::new(kick.as_fd()).unwrap();
        (kick, claimant)
    }

    fn is_kicked(kick: &OwnedFd) -> bool {
        rustix::io::read(kick, &mut [0; 8]).is_ok()
    }

    #[test]
    fn claims_on_one_block_are_served_in_their_order() {
        let lock = RangeLock::new(4096);
        let ((_, one), (kick, two)) = (claimant(), claimant());
        let (first, free) = lock.claim(&one, &(0..512));
        assert!(free);
        let (second, free) = lock.claim(&two, &(3584..4608));
        assert!(!free, "another sector of the same block");
        let (third, free) = lock.claim(&one, &(4096..8192));
        assert!(!free, "behind the second, although nobody writes there yet");
        let (elsewhere, free) = lock.claim(&two, &(8192..8704));
        assert!(free);
        lock.release(first);
        assert!(lock.is_free(&second) && is_kicked(&kick) && !lock.is_free(&third));
        lock.release(elsewhere);
        assert!(!lock.is_free(&third) && !is_kicked(&kick));
        lock.release(second);
        assert!(lock.is_free(&third));
        lock.release(third);
        assert!(lock.lock().is_empty());
    }
}
