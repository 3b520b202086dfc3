//! The queue of requests that wait for one reason.

use std::time::Instant;

use crate::disk_state::OpenDisk;
use crate::host_io::StateMachine;

/// The requests of an engine that have a state machine, by tag.
#[derive(Debug)]
pub(in crate::requests) struct Machines(Box<[Option<StateMachine>]>);

impl Machines {
    pub(in crate::requests) fn new(depth: usize) -> Self {
        Self(std::iter::repeat_with(|| None).take(depth).collect())
    }

    pub(in crate::requests) fn get(&self, tag: u16) -> Option<&StateMachine> {
        self.0.get(usize::from(tag))?.as_ref()
    }

    pub(in crate::requests) fn get_mut(&mut self, tag: u16) -> Option<&mut StateMachine> {
        self.0.get_mut(usize::from(tag))?.as_mut()
    }

    pub(in crate::requests) fn insert(&mut self, tag: u16, machine: StateMachine) {
        if let Some(slot) = self.0.get_mut(usize::from(tag)) {
            *slot = Some(machine);
        }
    }

    pub(in crate::requests) fn remove(&mut self, tag: u16) -> Option<StateMachine> {
        self.0.get_mut(usize::from(tag))?.take()
    }

    /// All tags, used or not.
    pub(in crate::requests) fn tags(&self) -> impl Iterator<Item = u16> + use<> {
        0..u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }
}

/// The parts of its engine that a queue uses.
pub(in crate::requests) struct QueueContext<'a> {
    pub(in crate::requests) disk: &'a OpenDisk,
    pub(in crate::requests) machines: &'a mut Machines,
}

impl QueueContext<'_> {
    pub(in crate::requests) fn now(&self) -> Instant {
        self.disk.state.clock.now()
    }
}

/// Requests that wait for one reason, and are not submitted to the host meanwhile.
pub(in crate::requests) trait WaitQueue {
    /// Keeps the request if it has to wait; returns `false` if it may pass.
    fn keep(&mut self, tag: u16, cx: &mut QueueContext<'_>) -> bool;

    /// Takes out the next request that need not wait any longer.
    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16>;

    /// Removes a request; `false` if it does not wait here.
    fn remove(&mut self, tag: u16) -> bool;

    /// Whether no request waits.
    fn is_empty(&self) -> bool;

    /// Number of requests that wait for a point in time.
    fn parked(&self) -> usize;

    /// When to call [`WaitQueue::release`] again, if nothing else happens before.
    fn due(&self) -> Option<Instant>;
}

/// Removes a tag from a list; `false` if it is not there.
pub(super) fn remove_tag(list: &mut Vec<u16>, tag: u16) -> bool {
    let before = list.len();
    list.retain(|waiting| *waiting != tag);
    list.len() != before
}
