//! Reads and writes in progress on a disk. Each engine counts its own in a cache line of its own,
//! so that counting costs two plain stores per transfer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Transfers of one engine. Written by its thread only, read by all engines of the disk.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct TransferCount {
    submitted: AtomicU64,
    completed: AtomicU64,
}

impl TransferCount {
    #[inline]
    pub(crate) fn submit(&self) {
        increment(&self.submitted);
    }

    #[inline]
    pub(crate) fn complete(&self) {
        increment(&self.completed);
    }

    fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Transfers in flight; approximate if another thread counts.
    pub(crate) fn in_flight(&self) -> u64 {
        let completed = self.completed();
        self.submitted.load(Ordering::Relaxed).saturating_sub(completed)
    }
}

/// Increments a counter that has one writer, so that no atomic read-modify-write is needed.
#[inline]
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Transfers of all engines of a disk at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoadSample {
    /// Completed since the disk was opened.
    pub(crate) completed: u64,
    pub(crate) in_flight: u64,
    /// Value of `completed` when the host last completed a discard chunk of any engine.
    pub(crate) completed_at_chunk: u64,
}

/// The transfers of all engines of one disk.
#[derive(Debug, Default)]
pub(crate) struct IoLoad {
    engines: Mutex<EngineCounts>,
    completed_at_chunk: AtomicU64,
}

#[derive(Debug, Default)]
struct EngineCounts {
    live: Vec<Arc<TransferCount>>,
    /// Transfers completed by engines that were dropped.
    completed: u64,
}

impl IoLoad {
    /// The counter of a new engine.
    pub(crate) fn register(&self) -> Arc<TransferCount> {
        let count = Arc::default();
        // Both fields are valid between any two changes.
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.live.push(Arc::clone(&count));
        count
    }

    /// The load now.
    pub(crate) fn sample(&self) -> LoadSample {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let EngineCounts { live, completed } = &mut *engines;
        let dropped = live.extract_if(.., |count| Arc::strong_count(count) == 1);
        *completed += dropped.map(|count| count.completed()).sum::<u64>();
        let mut sample = LoadSample {
            completed: *completed,
            in_flight: 0,
            completed_at_chunk: self.completed_at_chunk.load(Ordering::Relaxed),
        };
        for count in live {
            sample.completed += count.completed();
            sample.in_flight += count.in_flight();
        }
        sample
    }

    /// Records that the host has completed a discard chunk; returns the load at that moment.
    pub(crate) fn complete_chunk(&self) -> LoadSample {
        let sample = self.sample();
        self.completed_at_chunk.store(sample.completed, Ordering::Relaxed);
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_of_dropped_engines_stay_completed() {
        let load = IoLoad::default();
        let (first, second) = (load.register(), load.register());
        for count in [&first, &first, &second] {
            count.submit();
        }
        first.complete();
        let sample = |completed, in_flight, completed_at_chunk| LoadSample {
            completed,
            in_flight,
            completed_at_chunk,
        };
        assert_eq!(load.sample(), sample(1, 2, 0));
        drop(first);
        assert_eq!(load.complete_chunk(), sample(1, 1, 0));
        second.complete();
        assert_eq!(load.sample(), sample(2, 0, 1));
    }
}
