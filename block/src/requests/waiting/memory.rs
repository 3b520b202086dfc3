//! Requests that wait for memory: their data has to be copied, and the disk's budget is in use.

use std::time::Instant;

use super::queue::{QueueContext, WaitQueue, remove_tag};
use crate::kick::Kick;
use crate::memory_budget::{MemoryBudget, Reservation};

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::requests) struct MemoryWait {
    engine: Kick,
    /// By tag.
    reservations: Box<[Option<Reservation>]>,
    /// Requests whose reservations were not granted, in the order in which they will be.
    waiting: Vec<u16>,
}

impl MemoryWait {
    pub(in crate::requests) fn new(engine: Kick, depth: usize) -> Self {
        let reservations = std::iter::repeat_with(|| None).take(depth).collect();
        Self { engine, reservations, waiting: Vec::new() }
    }

    /// Releases the memory of a request that has freed it.
    pub(in crate::requests) fn complete(&mut self, tag: u16, budget: &MemoryBudget) {
        let reservation = self.reservations.get_mut(usize::from(tag)).and_then(Option::take);
        if let Some(reservation) = reservation {
            budget.release(&self.engine, reservation);
        }
    }
}

impl WaitQueue for MemoryWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        let Some(machine) = cx.machines.get(tag) else { return false };
        let bytes = machine.memory_needed(&cx.disk.file);
        let Some(slot) = self.reservations.get_mut(usize::from(tag)) else { return false };
        if bytes <= slot.as_ref().map_or(0, Reservation::bytes) {
            return false;
        }
        let budget = &cx.disk.state.memory;
        if let Some(smaller) = slot.take() {
            budget.release(&self.engine, smaller);
        }
        let (reservation, granted) = budget.reserve(&self.engine, bytes);
        *slot = Some(reservation);
        if !granted {
            self.waiting.push(tag);
        }
        !granted
    }

    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        let first = self.reservations.get(usize::from(*self.waiting.first()?))?.as_ref()?;
        cx.disk.state.memory.is_granted(first).then(|| self.waiting.remove(0))
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
