//! What happened that somebody should know of, for whoever asks later. Any thread.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The latest are kept, so that a machine that nobody asks does not grow.
const KEPT: usize = 256;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// So much is used of what stores a disk as was to be told of.
    SoftLimitReached,
    /// Less is used again.
    SoftLimitReceded,
    /// A disk was attached while the machine ran.
    DiskAttached,
    /// A disk was detached, and its image is closed.
    DiskDetached,
    /// The same, and its last flush failed.
    DiskDetachedWithLoss,
}

impl Happening {
    /// Its name in the interface.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SoftLimitReached => "soft_limit_reached",
            Self::SoftLimitReceded => "soft_limit_receded",
            Self::DiskAttached => "disk_attached",
            Self::DiskDetached => "disk_detached",
            Self::DiskDetachedWithLoss => "disk_detached_with_loss",
        }
    }
}

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Counts from 1 without a gap.
    pub(crate) number: u64,
    pub(crate) time: SystemTime,
    pub(crate) what: Happening,
    /// The disk it happened to.
    pub(crate) disk: String,
    /// In words.
    pub(crate) text: String,
}

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    list: Mutex<VecDeque<Event>>,
}

impl Events {
    /// Adds an event.
    pub(crate) fn add(&self, what: Happening, disk: &str, text: String) {
        let mut list = self.lock();
        let number = list.back().map_or(0, |event| event.number) + 1;
        if list.len() == KEPT {
            list.pop_front();
        }
        let time = SystemTime::now();
        list.push_back(Event { number, time, what, disk: disk.to_owned(), text });
    }

    /// All that are kept, the oldest first.
    pub(crate) fn all(&self) -> Vec<Event> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // The list is whole between any two changes.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_kept_and_numbered_without_a_gap() {
        let events = Events::default();
        for _ in 0..KEPT + 10 {
            events.add(Happening::SoftLimitReached, "root", String::new());
        }
        let numbers: Vec<_> = events.all().iter().map(|event| event.number).collect();
        assert_eq!(numbers, (11..=266).collect::<Vec<_>>());
    }
}
