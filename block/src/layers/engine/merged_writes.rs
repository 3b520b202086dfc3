//! First writes of blocks one behind the other, made by one request of the top.
//!
//! A host allocates space for each write of a hole, at a cost of its own. So a first write of whole
//! blocks waits for the submission, and for those that continue it. The first of them, the leader,
//! has the claim and the request of the top; the others ride. If that request fails or is
//! cancelled, each is made alone, so that each has a result of its own.

use std::io;

use super::LayerEngine;
use super::cancel::canceled;
use super::slot::{Change, MergedWrites, Slot, SlotWork};
use crate::{ByteOffset, ByteRange, Durability, Operation, Request, total_len};

impl LayerEngine {
    /// Merges a first write for which [`Change::may_be_merged`] holds.
    pub(super) fn merge_write(&mut self, mut request: Request<'_>, range: ByteRange) {
        let (tag, ByteOffset(start), end) = (request.tag, range.start, range.start.0 + range.len);
        if let Some(merged) = self.merged.as_mut().filter(|merged| merged.takes(range)) {
            let (leader, last) = (merged.leader, merged.last);
            (merged.last, merged.end) = (tag, end);
            if let Some(slot) = self.slots.get_mut(usize::from(last)) {
                slot.rider = Some(tag);
            }
            self.riders += 1;
            self.keep_segments(&mut request);
            return self.begin(tag, SlotWork::Rider { leader, at: range.start });
        }
        self.start_merged();
        self.keep_segments(&mut request);
        self.begin(tag, SlotWork::Change(Change::new(request.op, range)));
        self.merged = Some(MergedWrites { leader: tag, last: tag, start, end });
    }

    /// Starts the write that is being merged.
    pub(super) fn start_merged(&mut self) {
        let Some(MergedWrites { leader, start, end, .. }) = self.merged.take() else { return };
        if let Some(Slot { work: SlotWork::Change(change), .. }) =
            self.slots.get_mut(usize::from(leader))
        {
            change.range.len = end - start;
            self.claim(leader);
        }
    }

    /// Puts the data of a leader and its riders in `part`.
    pub(super) fn merge_segments(&mut self, leader: u16) {
        let Self { slots, part, .. } = self;
        part.clear();
        let mut next = Some(leader);
        while let Some(slot) = next.and_then(|tag| slots.get(usize::from(tag))) {
            part.extend_from_slice(&slot.segments);
            next = slot.rider;
        }
    }

    /// Completes a change that has ended, and its riders.
    pub(super) fn complete_change(&mut self, tag: u16, op: Operation, result: io::Result<()>) {
        let Some(mut rider) = self.take_rider(tag) else { return self.complete(tag, result) };
        let is_ok = result.is_ok();
        self.end_merged(tag, op, is_ok);
        loop {
            let next = self.take_rider(rider);
            if let SlotWork::Rider { at, .. } = self.take_work(rider) {
                self.riders -= 1;
                let op = Operation::Write { at, durability: Durability::Volatile };
                self.end_merged(rider, op, is_ok);
            }
            let Some(next) = next else { return };
            rider = next;
        }
    }

    /// Completes one request of a merged write, or makes its write alone.
    fn end_merged(&mut self, tag: u16, op: Operation, is_ok: bool) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let is_canceled = std::mem::take(&mut slot.is_canceled);
        if is_ok {
            return self.complete(tag, Ok(()));
        }
        if is_canceled {
            return self.complete(tag, Err(canceled()));
        }
        let range = op.range(total_len(&slot.segments) as u64);
        self.begin(tag, SlotWork::Change(Change::new(op, range)));
        self.claim(tag);
    }

    fn take_rider(&mut self, tag: u16) -> Option<u16> {
        self.slots.get_mut(usize::from(tag)).and_then(|slot| slot.rider.take())
    }

    /// Cancels one request of a merged write, if the host does not work on that; `None` if the
    /// request was not merged with others.
    pub(super) fn cancel_merged(&mut self, tag: u16) -> Option<bool> {
        self.start_merged();
        let slot = self.slots.get(usize::from(tag))?;
        let leader = match slot.work {
            SlotWork::Rider { leader, .. } => leader,
            SlotWork::Change(_) if slot.rider.is_some() => tag,
            _ => return None,
        };
        self.cancel_steps(tag);
        if let Some(index) = self.waiting.iter().position(|waiting| *waiting == leader) {
            self.waiting.swap_remove(index);
            self.end_change(leader, Err(canceled()));
            self.revive();
            return Some(true);
        }
        let leader_slot = self.slots.get(usize::from(leader));
        let is_ending = leader_slot.is_some_and(|slot| slot.is_ending)
            || self.engines.iter_mut().any(|level| level.engine.cancel(leader));
        if let Some(slot) = self.slots.get_mut(usize::from(leader)) {
            slot.is_ending = is_ending;
        }
        Some(is_ending)
    }
}
