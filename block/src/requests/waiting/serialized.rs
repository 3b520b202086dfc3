//! Calls that are serialized, one of each kind at a time: discard chunks, `fdatasync` and zeroing.
//!
//! Together they are fewer than the threads of a pool, so that a read always finds a free one.
//!
//! Two `fdatasync` on one descriptor would share one report of a lost write, and the second would
//! acknowledge it. So one runs at a time, for all requests that needed it when it was submitted.

use std::time::Instant;

use super::queue::{QueueContext, WaitQueue, remove_tag};
use crate::discard::DiscardQueue;
use crate::host_io::StateMachine;

/// Requests that wait to discard their next chunk.
#[derive(Debug)]
pub(in crate::requests) struct DiscardWait(pub(in crate::requests) DiscardQueue);

impl WaitQueue for DiscardWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        let is_paced = cx.machines.get(tag).is_some_and(StateMachine::is_paced_discard);
        if is_paced {
            self.0.push(tag);
        }
        is_paced
    }

    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        let state = &cx.disk.state;
        self.0.pop(|| state.clock.now(), &state.load)
    }

    fn remove(&mut self, tag: u16) -> bool {
        self.0.remove(tag)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    fn parked(&self) -> usize {
        self.0.len()
    }

    fn due(&self) -> Option<Instant> {
        self.0.due()
    }
}

/// Requests that need an `fdatasync`.
#[derive(Debug)]
pub(in crate::requests) struct SyncWait {
    /// Those that the running one completes; the first has submitted it.
    running: Vec<u16>,
    /// Those that came later, for the next one.
    waiting: Vec<u16>,
}

impl SyncWait {
    pub(in crate::requests) fn new(depth: usize) -> Self {
        Self { running: Vec::with_capacity(depth), waiting: Vec::with_capacity(depth) }
    }

    /// The `fdatasync` has completed; moves the requests that it was for to `completed`.
    pub(in crate::requests) fn complete_call(&mut self, completed: &mut Vec<u16>) {
        completed.append(&mut self.running);
    }
}

impl WaitQueue for SyncWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        if !cx.machines.get(tag).is_some_and(StateMachine::is_sync) {
            return false;
        }
        match self.running.first() {
            None => self.running.push(tag),
            // Interrupted: it is submitted again.
            Some(&first) if first == tag => {}
            Some(_) => {
                self.waiting.push(tag);
                return true;
            }
        }
        false
    }

    fn release(&mut self, _cx: &mut QueueContext<'_>) -> Option<u16> {
        if !self.running.is_empty() || self.waiting.is_empty() {
            return None;
        }
        std::mem::swap(&mut self.running, &mut self.waiting);
        self.running.first().copied()
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

/// Maximum number of zeroing calls in flight.
pub(in crate::requests) const MAX_ZEROING: usize = 1;

/// Requests that zero a range.
#[derive(Debug)]
pub(in crate::requests) struct ZeroWait {
    running: usize,
    waiting: Vec<u16>,
}

impl ZeroWait {
    pub(in crate::requests) fn new(depth: usize) -> Self {
        Self { running: 0, waiting: Vec::with_capacity(depth) }
    }

    /// A zeroing call has completed.
    pub(in crate::requests) fn complete_call(&mut self) {
        self.running = self.running.saturating_sub(1);
    }
}

impl WaitQueue for ZeroWait {
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool {
        if !cx.machines.get(tag).is_some_and(StateMachine::is_zeroing_call) {
            return false;
        }
        if self.running >= MAX_ZEROING {
            self.waiting.push(tag);
            return true;
        }
        self.running += 1;
        false
    }

    fn release(&mut self, _cx: &mut QueueContext<'_>) -> Option<u16> {
        if self.running >= MAX_ZEROING || self.waiting.is_empty() {
            return None;
        }
        self.running += 1;
        Some(self.waiting.remove(0))
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
