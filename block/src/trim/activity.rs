//! How many reads and writes go on at a disk. Each engine counts its own, so that counting costs next to nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One engine's transfers. It counts, all engines look. A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Transfers {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Transfers {
    #[inline]
    pub(crate) fn begin(&self) {
        count(&self.begun);
    }

    #[inline]
    pub(crate) fn end(&self) {
        count(&self.ended);
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// How many have begun and not ended. Seen from another thread, about so many.
    pub(crate) fn in_flight(&self) -> u64 {
        let ended = self.ended();
        self.begun.load(Ordering::Relaxed).saturating_sub(ended)
    }
}

/// Only one thread counts, so this need not be one step.
#[inline]
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The transfers of all engines at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// How many have ended since the disk was opened.
    pub(crate) ended: u64,
    pub(crate) in_flight: u64,
    /// How many had ended when the host last answered a discard, of whichever engine.
    pub(crate) ended_at_chunk: u64,
}

/// The transfers of all engines of one disk.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    engines: Mutex<Engines>,
    ended_at_chunk: AtomicU64,
}

#[derive(Debug, Default)]
struct Engines {
    live: Vec<Arc<Transfers>>,
    /// How many transfers those had ended that are gone.
    ended: u64,
}

impl Activity {
    /// The count of a new engine.
    pub(crate) fn join(&self) -> Arc<Transfers> {
        let transfers = Arc::default();
        // The lists are whole between any two changes.
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.live.push(Arc::clone(&transfers));
        transfers
    }

    /// What goes on now.
    pub(crate) fn look(&self) -> Traffic {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let Engines { live, ended } = &mut *engines;
        let gone = live.extract_if(.., |transfers| Arc::strong_count(transfers) == 1);
        *ended += gone.map(|transfers| transfers.ended()).sum::<u64>();
        let mut traffic = Traffic {
            ended: *ended,
            in_flight: 0,
            ended_at_chunk: self.ended_at_chunk.load(Ordering::Relaxed),
        };
        for transfers in live {
            traffic.ended += transfers.ended();
            traffic.in_flight += transfers.in_flight();
        }
        traffic
    }

    /// The host has answered a discard; what goes on then.
    pub(crate) fn chunk_ended(&self) -> Traffic {
        let traffic = self.look();
        self.ended_at_chunk.store(traffic.ended, Ordering::Relaxed);
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_are_gone_have_ended_what_they_ended() {
        let activity = Activity::default();
        let (first, second) = (activity.join(), activity.join());
        for transfers in [&first, &first, &second] {
            transfers.begin();
        }
        first.end();
        assert_eq!(activity.look(), Traffic { ended: 1, in_flight: 2, ended_at_chunk: 0 });
        drop(first);
        assert_eq!(activity.chunk_ended(), Traffic { ended: 1, in_flight: 1, ended_at_chunk: 0 });
        second.end();
        assert_eq!(activity.look(), Traffic { ended: 2, in_flight: 0, ended_at_chunk: 1 });
    }
}
