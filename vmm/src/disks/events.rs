//! The log of disk events, for clients of the control socket. Any thread.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Events kept; older ones are dropped, so that memory is bounded.
const CAPACITY: usize = 256;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// Usage of a disk's backing store reached the soft limit.
    SoftLimitReached,
    /// Usage fell below the soft limit again.
    SoftLimitReceded,
    /// The host keeps requests of a disk for seconds.
    RequestsStalled,
    /// The host answers again.
    RequestsResumed,
    /// Requests of a disk failed on the host.
    HostErrors,
    /// Write-back failed: acknowledged writes were lost, or may be.
    WritesLost,
    /// A snapshot has frozen the layer of a disk, which continues in a new one.
    SnapshotMade,
    /// A frozen layer was merged into its base.
    LayerMerged,
    /// A recording ended before its disk was closed.
    RecordingStopped,
    /// A disk was attached to the running machine.
    DiskAttached,
    /// A disk was detached, flushed, and its image closed.
    DiskDetached,
    /// A disk was detached and its image closed, but the last flush failed.
    DiskDetachedWithLoss,
}

impl EventKind {
    /// The name in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SoftLimitReached => "soft_limit_reached",
            Self::SoftLimitReceded => "soft_limit_receded",
            Self::RequestsStalled => "requests_stalled",
            Self::RequestsResumed => "requests_resumed",
            Self::HostErrors => "host_errors",
            Self::WritesLost => "writes_lost",
            Self::SnapshotMade => "snapshot_made",
            Self::LayerMerged => "layer_merged",
            Self::RecordingStopped => "recording_stopped",
            Self::DiskAttached => "disk_attached",
            Self::DiskDetached => "disk_detached",
            Self::DiskDetachedWithLoss => "disk_detached_with_loss",
        }
    }
}

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct EventRecord {
    /// Consecutive, from 1.
    pub(crate) number: u64,
    pub(crate) time: SystemTime,
    pub(crate) kind: EventKind,
    /// The disk's name.
    pub(crate) disk: String,
    /// Description for people.
    pub(crate) text: String,
}

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    records: Mutex<VecDeque<EventRecord>>,
}

impl EventLog {
    /// Adds an event.
    pub(crate) fn add(&self, kind: EventKind, disk: &str, text: String) {
        let mut records = self.lock();
        let number = records.back().map_or(0, |event| event.number) + 1;
        if records.len() == CAPACITY {
            records.pop_front();
        }
        let time = SystemTime::now();
        records.push_back(EventRecord { number, time, kind, disk: disk.to_owned(), text });
    }

    /// All events kept, oldest first.
    pub(crate) fn all(&self) -> Vec<EventRecord> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<EventRecord>> {
        // The list is consistent between any two changes, so a poisoned lock is usable.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_kept_with_consecutive_numbers() {
        let events = EventLog::default();
        for _ in 0..CAPACITY + 10 {
            events.add(EventKind::SoftLimitReached, "root", String::new());
        }
        let numbers: Vec<_> = events.all().iter().map(|event| event.number).collect();
        assert_eq!(numbers, (11..=266).collect::<Vec<_>>());
    }
}
