//! Changes that wait for a claim on their blocks, in the disk's range lock.

use std::time::Instant;

use super::queue::{QueueContext, WaitQueue, remove_tag};
use crate::Operation;
use crate::kick::Kick;
use crate::range_lock::{Claim, RangeLock};

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::requests) struct ClaimWait {
    engine: Kick,
    /// Every change has to be claimed.
    is_required: bool,
    /// By tag.
    states: Box<[ClaimState]>,
    /// Requests whose claims are not granted.
    waiting: Vec<u16>,
    /// Changes in flight that started without a claim, since claims are required.
    unclaimed: usize,
}

/// The claim of a request.
#[derive(Debug)]
enum ClaimState {
    /// Nothing: it changes nothing, or has not come this far.
    None,
    /// Nothing, and it changes blocks: claims were not required when it started.
    Unclaimed,
    /// Its blocks.
    Claimed(Claim),
}

impl ClaimWait {
    /// Registers an engine with the range lock, until [`ClaimWait::unregister`].
    pub(in crate::requests) fn new(lock: &RangeLock, engine: Kick, depth: usize) -> Self {
        let is_required = lock.register(&engine);
        let states = std::iter::repeat_with(|| ClaimState::None).take(depth).collect();
        Self { engine, is_required, states, waiting: Vec::new(), unclaimed: 0 }
    }

    pub(in crate::requests) fn is_required(&self) -> bool {
        self.is_required
    }

    /// Requires claims from now on. Until the `unclaimed` changes in flight have completed, no
    /// compare-and-write is granted its claim.
    pub(in crate::requests) fn require(&mut self, lock: &RangeLock) {
        self.is_required = true;
        let is_unclaimed = |state: &&ClaimState| matches!(state, ClaimState::Unclaimed);
        self.unclaimed = self.states.iter().filter(is_unclaimed).count();
        self.report_if_claiming(lock);
    }

    /// Marks a fast-path write that started without a claim.
    pub(in crate::requests) fn mark_unclaimed(&mut self, tag: u16) {
        self.set(tag, ClaimState::Unclaimed);
    }

    /// Releases the claim of a request that has completed, or is held.
    pub(in crate::requests) fn complete(&mut self, tag: u16, lock: &RangeLock) {
        match self.set(tag, ClaimState::None) {
            ClaimState::None => {}
            ClaimState::Claimed(claim) => lock.release(&self.engine, claim),
            ClaimState::Unclaimed if self.is_required => {
                self.unclaimed -= 1;
                self.report_if_claiming(lock);
            }
            ClaimState::Unclaimed => {}
        }
    }

    fn report_if_claiming(&self, lock: &RangeLock) {
        if self.unclaimed == 0 {
            lock.report_claiming(&self.engine);
        }
    }

    fn set(&mut self, tag: u16, state: ClaimState) -> ClaimState {
        let slot = self.states.get_mut(usize::from(tag));
        slot.map_or(ClaimState::None, |slot| std::mem::replace(slot, state))
    }

    pub(in crate::requests) fn unregister(&self, lock: &RangeLock) {
        lock.unregister(&self.engine);
    }
}

impl WaitQueue for ClaimWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        let Some(machine) = cx.machines.get(tag) else { return false };
        let Some(bytes) = machine.changes().filter(|bytes| !bytes.is_empty()) else {
            return false;
        };
        if !self.is_required {
            self.set(tag, ClaimState::Unclaimed);
            return false;
        }
        let compares = matches!(machine.op(), Operation::CompareAndWrite { .. });
        let (claim, granted) = cx.disk.state.range_lock.claim(&self.engine, &bytes, compares);
        self.set(tag, ClaimState::Claimed(claim));
        if !granted {
            self.waiting.push(tag);
        }
        !granted
    }

    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        let (lock, states) = (&cx.disk.state.range_lock, &self.states);
        let is_granted = |tag: &u16| match states.get(usize::from(*tag)) {
            Some(ClaimState::Claimed(claim)) => lock.is_granted(claim),
            _ => false,
        };
        let index = self.waiting.iter().position(is_granted)?;
        Some(self.waiting.remove(index))
    }

    fn remove(&mut self, tag: u16) -> bool {
        remove_tag(&mut self.waiting, tag)
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn parked(&self) -> usize {
        0
    }

    fn due(&self) -> Option<Instant> {
        None
    }
}
