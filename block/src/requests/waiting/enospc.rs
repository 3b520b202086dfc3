//! Requests held for ENOSPC: retried at growing intervals until there is space, or their deadline.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::queue::{QueueContext, WaitQueue, remove_tag};
use crate::disk_state::OpenDisk;

/// The first interval between two retries, and the largest. Each is twice the one before.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::requests) struct EnospcWait {
    /// When each request was first refused, by tag.
    refused: Box<[Option<Instant>]>,
    held: Vec<u16>,
    /// Requests that are to be retried.
    released: VecDeque<u16>,
    due: Option<Instant>,
    interval: Duration,
}

impl EnospcWait {
    pub(in crate::requests) fn new(depth: usize) -> Self {
        Self {
            refused: vec![None; depth].into(),
            held: Vec::new(),
            released: VecDeque::new(),
            due: None,
            interval: FIRST_INTERVAL,
        }
    }

    /// Holds a request that the host has refused with `error`; `false` if the disk holds none, or
    /// the request's deadline has passed.
    pub(in crate::requests) fn hold(
        &mut self,
        tag: u16,
        error: &io::Error,
        disk: &OpenDisk,
    ) -> bool {
        let now = disk.state.clock.now();
        let Some(refused) = self.refused.get_mut(usize::from(tag)) else { return false };
        let since = refused.unwrap_or(now);
        let deadline = disk.state.enospc.deadline(since);
        let Some(deadline) = deadline.filter(|&deadline| deadline > now) else { return false };
        if refused.replace(since).is_none() {
            disk.state.enospc.enter(error, now);
        }
        self.add(tag, now, deadline);
        true
    }

    fn add(&mut self, tag: u16, now: Instant, deadline: Instant) {
        self.held.push(tag);
        let next = *self.due.get_or_insert_with(|| now + self.interval);
        self.due = Some(next.min(deadline));
    }

    /// A request has completed; if it was ever held and `has_succeeded`, there is space again.
    pub(in crate::requests) fn complete(&mut self, tag: u16, has_succeeded: bool, disk: &OpenDisk) {
        let refused = self.refused.get_mut(usize::from(tag)).and_then(Option::take);
        if let Some(since) = refused {
            disk.state.enospc.leave(since);
            if has_succeeded {
                self.interval = FIRST_INTERVAL;
            }
        }
    }

    /// Releases all requests if a retry is due, or `immediately`.
    fn release_due(&mut self, now: Instant, immediately: bool) {
        if self.due.is_none_or(|due| due > now && !immediately) {
            return;
        }
        self.due = None;
        self.interval = (self.interval * 2).min(MAX_INTERVAL);
        self.released.extend(self.held.drain(..));
    }
}

impl WaitQueue for EnospcWait {
    fn keep(&mut self, _tag: u16, _cx: &mut QueueContext<'_>) -> bool {
        false
    }

    fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        if self.due.is_some() {
            self.release_due(cx.now(), cx.disk.state.enospc.is_stopped());
        }
        self.released.pop_front()
    }

    fn remove(&mut self, tag: u16) -> bool {
        remove_tag(&mut self.held, tag)
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.released.is_empty()
    }

    fn parked(&self) -> usize {
        self.held.len()
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pop_all(wait: &mut EnospcWait, now: Instant, immediately: bool) -> Vec<u16> {
        wait.release_due(now, immediately);
        wait.released.drain(..).collect()
    }

    #[test]
    fn intervals_double_up_to_five_seconds_and_restart_after_a_success() {
        let start = Instant::now();
        let far = start + Duration::from_secs(3600);
        let mut wait = EnospcWait::new(4);
        let mut now = start;
        for millis in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            wait.add(1, now, far);
            wait.add(2, now + Duration::from_millis(10), far);
            assert_eq!(wait.due(), Some(now + Duration::from_millis(millis)));
            assert!(pop_all(&mut wait, now + Duration::from_millis(millis - 1), false).is_empty());
            now += Duration::from_millis(millis);
            assert_eq!(pop_all(&mut wait, now, false), [1, 2]);
        }
        let disk = crate::requests::tests::disk();
        wait.refused[1] = Some(now);
        wait.complete(1, true, &disk.open_disk());
        wait.add(1, now, far);
        assert_eq!(wait.due(), Some(now + FIRST_INTERVAL));
        assert_eq!(pop_all(&mut wait, now, true), [1], "before it is due");
    }

    #[test]
    fn a_retry_is_due_no_later_than_the_deadline() {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(30);
        let mut wait = EnospcWait::new(4);
        wait.add(1, now, now + MAX_INTERVAL);
        wait.add(2, now, deadline);
        assert_eq!(wait.due(), Some(deadline));
    }
}
