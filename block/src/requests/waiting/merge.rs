//! Discards of partial granules that are delayed to be merged with their neighbours.

use std::collections::VecDeque;
use std::time::Instant;

use super::queue::{QueueContext, WaitQueue};
use crate::discard::{Granules, MergeQueue, MergedRange};
use crate::host_io::StateMachine;
use crate::{DiscardLimits, Durability, Operation};

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::requests) struct MergeWait {
    /// `None` if the host discards nothing.
    queue: Option<MergeQueue>,
    /// Merged ranges that are to be discarded.
    released: VecDeque<MergedRange>,
    /// Pairs of a request and the one that discards its range too.
    riders: Vec<(u16, u16)>,
    /// Release everything now.
    is_expedited: bool,
}

impl MergeWait {
    pub(in crate::requests) fn new(limits: Option<DiscardLimits>) -> Self {
        Self {
            queue: limits.map(|limits| MergeQueue::new(Granules::new(limits))),
            released: VecDeque::new(),
            riders: Vec::new(),
            is_expedited: false,
        }
    }

    /// Ends the delay of all requests.
    pub(in crate::requests) fn expedite(&mut self) {
        self.is_expedited = self.queue.as_ref().is_some_and(|queue| queue.len() > 0);
    }

    /// Removes and returns one of the requests whose ranges `carrier` discards.
    pub(in crate::requests) fn pop_rider(&mut self, carrier: u16) -> Option<u16> {
        let index = self.riders.iter().position(|(_, other)| *other == carrier)?;
        Some(self.riders.swap_remove(index).0)
    }

    /// Lets the first request of a merged range discard it for all of them.
    fn carry(&mut self, merged: &MergedRange, cx: &mut QueueContext<'_>) -> Option<u16> {
        let MergedRange { tags, range, gained } = merged;
        let (&carrier, riders) = tags.split_first()?;
        let is_durable_discard =
            |tag: &u16| cx.machines.get(*tag).is_some_and(|machine| machine.op().is_durable());
        let durable = tags.iter().any(is_durable_discard);
        let durability = if durable { Durability::Durable } else { Durability::Volatile };
        for rider in riders {
            if let Some(machine) = cx.machines.get_mut(*rider) {
                machine.set_merged(true);
            }
            self.riders.push((*rider, carrier));
        }
        cx.machines.get_mut(carrier)?.replace_discard(*range, durability, &cx.disk.file);
        cx.disk.state.discards.add_merged(*gained);
        Some(carrier)
    }
}

impl WaitQueue for MergeWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        let op = cx.machines.get(tag).map(StateMachine::op);
        let Some(Operation::Discard { range, more_follows: false, .. }) = op else { return false };
        let now = cx.now();
        self.queue.as_mut().is_some_and(|queue| queue.delay(tag, range, now))
    }

    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        if let Some(queue) = &mut self.queue
            && let Some(due) = queue.due()
            && (self.is_expedited || due <= cx.now())
        {
            self.is_expedited = false;
            self.released.extend(queue.release());
        }
        let merged = self.released.pop_front()?;
        self.carry(&merged, cx)
    }

    fn remove(&mut self, tag: u16) -> bool {
        self.queue.as_mut().is_some_and(|queue| queue.remove(tag))
    }

    fn is_empty(&self) -> bool {
        self.released.is_empty() && self.parked() == 0
    }

    fn parked(&self) -> usize {
        self.queue.as_ref().map_or(0, MergeQueue::len)
    }

    fn due(&self) -> Option<Instant> {
        self.queue.as_ref().and_then(MergeQueue::due)
    }
}
