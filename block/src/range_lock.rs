//! The range lock of a disk: excludes other changes to blocks between their read and their write.
//!
//! Two kinds of requests read before they write: a write of part of a direct-I/O block, which reads
//! the block, modifies it and writes it back, and a compare-and-write. A change to the same blocks
//! in between, from this queue or another, would be lost or overlooked. So every change claims its
//! blocks.
//!
//! If only compare-and-write needs that, no engine claims anything until the first one arrives. It
//! makes claims required for good: each engine of the disk is kicked, claims from then on, and
//! reports when all changes that it started without a claim are complete. No compare-and-write is
//! granted its claim before all engines have reported.
//!
//! Nothing blocks: a request whose claim is not granted waits in its engine, which is kicked when
//! the claim may have been granted. Claims are granted in the order they were made, each request
//! has at most one, and none is kept while its request is held for ENOSPC: so there is neither
//! starvation nor deadlock.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kick::Kick;

/// The claims on one disk.
#[derive(Debug)]
pub(crate) struct RangeLock {
    /// Size of a block in bytes.
    unit: u64,
    /// Every change has to be claimed. Never reset.
    required: AtomicBool,
    next: AtomicU64,
    state: Mutex<LockState>,
}

#[derive(Debug, Default)]
struct LockState {
    /// In the order they were made.
    claims: Vec<ClaimEntry>,
    /// Number of claims that are not granted.
    waiting: usize,
    engines: Vec<RegisteredEngine>,
}

#[derive(Debug)]
struct ClaimEntry {
    ticket: u64,
    bytes: Range<u64>,
    /// Of a compare-and-write: not granted before every engine claims.
    compares: bool,
    waiting: bool,
    kick: Kick,
}

#[derive(Debug)]
struct RegisteredEngine {
    kick: Kick,
    /// It has no change in flight without a claim.
    claims: bool,
}

/// A claim on a range, granted or waiting, to be passed to [`RangeLock::release`].
#[derive(Debug)]
#[must_use = "a claim that is not released locks its range for good"]
pub(crate) struct Claim(u64);

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

    /// Registers an engine until [`RangeLock::unregister`], and returns whether it has to claim its
    /// changes from the start. If not, it is kicked when it has to.
    pub(crate) fn register(&self, engine: &Kick) -> bool {
        let mut state = self.lock();
        let claims = self.is_required();
        state.engines.push(RegisteredEngine { kick: engine.clone(), claims });
        claims
    }

    /// Removes an engine.
    pub(crate) fn unregister(&self, engine: &Kick) {
        self.change(engine, |state| {
            state.engines.retain(|registered| !registered.kick.is_same(engine));
        });
    }

    /// Makes claims required for every change, and kicks the engines.
    pub(crate) fn require(&self) {
        let state = self.lock();
        if !self.required.swap(true, Ordering::AcqRel) {
            state.engines.iter().for_each(|engine| engine.kick.signal());
        }
    }

    /// Reports that an engine has no change in flight without a claim.
    pub(crate) fn report_claiming(&self, engine: &Kick) {
        self.change(engine, |state| {
            for registered in &mut state.engines {
                registered.claims |= registered.kick.is_same(engine);
            }
        });
    }

    /// Claims every block that `bytes` touch; for a compare-and-write if `compares`. Returns
    /// whether the claim is granted.
    pub(crate) fn claim(&self, by: &Kick, bytes: &Range<u64>, compares: bool) -> (Claim, bool) {
        let start = bytes.start - bytes.start % self.unit;
        let end = bytes.end.checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        let mut state = self.lock();
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let kick = by.clone();
        let mut entry = ClaimEntry { ticket, bytes: start..end, compares, waiting: true, kick };
        entry.waiting = state.must_wait(&entry, state.claims.len());
        let granted = !entry.waiting;
        state.waiting += usize::from(entry.waiting);
        state.claims.push(entry);
        (Claim(ticket), granted)
    }

    /// Whether a claim is granted.
    pub(crate) fn is_granted(&self, claim: &Claim) -> bool {
        self.lock().claims.iter().any(|entry| entry.ticket == claim.0 && !entry.waiting)
    }

    /// Releases a claim of `by`, and kicks the other engines whose claims this grants.
    #[expect(clippy::needless_pass_by_value, reason = "a released claim is gone")]
    pub(crate) fn release(&self, by: &Kick, claim: Claim) {
        self.change(by, |state| {
            // Mostly one of the first.
            let found = state.claims.iter().position(|entry| entry.ticket == claim.0);
            if let Some(entry) = found.map(|index| state.claims.remove(index)) {
                state.waiting -= usize::from(entry.waiting);
            }
        });
    }

    /// Changes the state, and kicks the engines other than `by` whose claims this grants.
    fn change(&self, by: &Kick, change: impl FnOnce(&mut LockState)) {
        let mut state = self.lock();
        change(&mut state);
        let granted = state.grant();
        drop(state);
        for engine in granted.iter().filter(|engine| !engine.is_same(by)) {
            engine.signal();
        }
    }

    fn lock(&self) -> MutexGuard<'_, LockState> {
        // Each change is complete when the lock is released, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LockState {
    /// Whether a claim has to wait, `before` being the number of older claims.
    fn must_wait(&self, entry: &ClaimEntry, before: usize) -> bool {
        let unclaimed = entry.compares && self.engines.iter().any(|engine| !engine.claims);
        unclaimed
            || self.claims.iter().take(before).any(|other| overlap(&other.bytes, &entry.bytes))
    }

    /// Grants the claims that need not wait, and returns the kicks of their engines.
    fn grant(&mut self) -> Vec<Kick> {
        if self.waiting == 0 {
            return Vec::new();
        }
        let must_wait =
            |(index, entry): (usize, &ClaimEntry)| entry.waiting && self.must_wait(entry, index);
        let waiting: Vec<bool> = self.claims.iter().enumerate().map(must_wait).collect();
        let mut granted = Vec::new();
        for (entry, waiting) in self.claims.iter_mut().zip(waiting) {
            if entry.waiting && !waiting {
                entry.waiting = false;
                self.waiting -= 1;
                granted.push(entry.kick.clone());
            }
        }
        granted
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::EventfdFlags;

    use super::*;

    fn engine(lock: &RangeLock) -> (OwnedFd, Kick) {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let eventfd = rustix::event::eventfd(0, flags).unwrap();
        let kick = Kick::new(eventfd.as_fd()).unwrap();
        assert_eq!(lock.register(&kick), lock.is_required());
        (eventfd, kick)
    }

    fn is_kicked(kick: &OwnedFd) -> bool {
        rustix::io::read(kick, &mut [0; 8]).is_ok()
    }

    #[test]
    fn claims_on_one_block_are_granted_in_order() {
        let lock = RangeLock::new(4096, true);
        let ((_, one), (kick, two)) = (engine(&lock), engine(&lock));
        let (first, granted) = lock.claim(&one, &(0..512), false);
        assert!(granted);
        let (second, granted) = lock.claim(&two, &(3584..4608), false);
        assert!(!granted, "another sector of the same block");
        let (third, granted) = lock.claim(&one, &(4096..8192), false);
        assert!(!granted, "behind the second, which is not granted either");
        let (elsewhere, granted) = lock.claim(&two, &(8192..8704), true);
        assert!(granted);
        lock.release(&one, first);
        assert!(lock.is_granted(&second) && is_kicked(&kick) && !lock.is_granted(&third));
        lock.release(&two, elsewhere);
        assert!(!lock.is_granted(&third) && !is_kicked(&kick));
        lock.release(&two, second);
        assert!(lock.is_granted(&third));
        lock.release(&one, third);
        let (fourth, granted) = lock.claim(&one, &(0..4096), false);
        let (last, is_last_granted) = lock.claim(&two, &(0..4096), false);
        assert!(granted && !is_last_granted && lock.lock().waiting == 1);
        lock.release(&two, last);
        lock.release(&one, fourth);
        assert!(lock.lock().claims.is_empty() && lock.lock().waiting == 0);
    }

    #[test]
    fn a_compare_and_write_waits_until_every_engine_claims() {
        let lock = RangeLock::new(1, false);
        let ((_, one), (kick, two)) = (engine(&lock), engine(&lock));
        lock.require();
        assert!(lock.is_required() && is_kicked(&kick));
        lock.report_claiming(&one);
        let (claim, granted) = lock.claim(&one, &(0..512), true);
        assert!(!granted, "the other engine may be writing there");
        let (write, granted) = lock.claim(&one, &(512..1024), false);
        assert!(granted);
        let (late, three) = engine(&lock);
        assert!(!lock.is_granted(&claim));
        lock.unregister(&two);
        assert!(lock.is_granted(&claim), "an engine that registers later claims from its start");
        lock.release(&one, claim);
        lock.release(&one, write);
        lock.unregister(&three);
        assert!(!is_kicked(&late));
        assert_eq!(lock.lock().engines.len(), 1);
    }
}
