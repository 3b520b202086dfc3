//! Pieces of granules that wait a short while for their neighbours.
//!
//! The host frees whole granules only. A guest that discards parts of one, each in a request of its own, would free nothing:
//! so a discard with an end within a granule waits for others that may complete it. It has not completed meanwhile, so the
//! guest cannot have written there anew, and no flush waits for it.

use std::time::{Duration, Instant};

use super::Granules;
use crate::{ByteOffset, ByteRange};

/// How long a piece waits for its neighbours. Guests that discard many pieces offer them within this; one that
/// waits for each loses no more by it than a disk's seek.
const WINDOW: Duration = Duration::from_millis(2);

/// Neighbouring discards as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The tags of the requests that ask for it; there is at least one.
    pub(crate) tags: Vec<u16>,
    /// The whole granules of all together, perhaps none.
    pub(crate) range: ByteRange,
    /// How many bytes of it are in whole granules only together.
    pub(crate) gathered: u64,
}

/// One engine's discards that wait.
#[derive(Debug)]
pub(crate) struct Gather {
    granules: Granules,
    held: Vec<(u16, ByteRange)>,
    due: Option<Instant>,
}

impl Gather {
    pub(crate) fn new(granules: Granules) -> Self {
        Self { granules, held: Vec::new(), due: None }
    }

    /// Takes a discard that may gain by waiting; `false` if it would not.
    pub(crate) fn hold(&mut self, tag: u16, range: ByteRange, now: Instant) -> bool {
        if self.granules.bytes_within(range) == range.len {
            return false;
        }
        self.held.push((tag, range));
        self.due.get_or_insert(now + WINDOW);
        true
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether a request waits.
    pub(crate) fn holds(&self, tag: u16) -> bool {
        self.held.iter().any(|(held, _)| *held == tag)
    }

    /// Lets a request wait no more, and nothing else; `false` if it did not.
    pub(crate) fn drop_one(&mut self, tag: u16) -> bool {
        let before = self.held.len();
        self.held.retain(|(held, _)| *held != tag);
        self.held.len() != before
    }

    /// When the first that waits has waited long enough.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Everything that waits, neighbours joined. Nothing waits any more.
    pub(crate) fn release(&mut self) -> Vec<Run> {
        self.due = None;
        let mut held = std::mem::take(&mut self.held);
        held.sort_by_key(|(_, range)| range.start);
        let mut runs: Vec<Joined> = Vec::new();
        for (tag, range) in held {
            match runs.last_mut().filter(|run| range.start.0 <= run.end) {
                Some(run) => run.join(tag, range, self.granules),
                None => runs.push(Joined::new(tag, range, self.granules)),
            }
        }
        runs.into_iter().map(|run| run.finish(self.granules)).collect()
    }
}

/// A run while it grows.
struct Joined {
    tags: Vec<u16>,
    start: u64,
    end: u64,
    /// Bytes of whole granules of each by itself. Where two overlap, some count twice.
    alone: u64,
}

impl Joined {
    fn new(tag: u16, range: ByteRange, granules: Granules) -> Self {
        let (start, end) = (range.start.0, range.start.0 + range.len);
        Self { tags: vec![tag], start, end, alone: granules.bytes_within(range) }
    }

    fn join(&mut self, tag: u16, range: ByteRange, granules: Granules) {
        self.tags.push(tag);
        self.end = self.end.max(range.start.0 + range.len);
        self.alone += granules.bytes_within(range);
    }

    fn finish(self, granules: Granules) -> Run {
        let (start, end) = granules.within(self.start, self.end);
        let len = end - start;
        let range = ByteRange { start: ByteOffset(start), len };
        Run { tags: self.tags, range, gathered: len.saturating_sub(self.alone) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiscardLimits;

    const KIB: u64 = 1024;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange { start: ByteOffset(start), len }
    }

    fn gather() -> Gather {
        Gather::new(Granules::new(DiscardLimits {
            granularity: 16 << 10,
            alignment: 0,
            reads_zero: true,
        }))
    }

    #[test]
    fn whole_granules_do_not_wait() {
        let mut gather = gather();
        assert!(!gather.hold(1, range(16 * KIB, 32 * KIB), Instant::now()));
        assert_eq!(gather.due(), None);
    }

    #[test]
    fn pieces_become_granules_with_their_neighbours() {
        let mut gather = gather();
        let now = Instant::now();
        // Out of order, as four queues of a guest might send them.
        for (tag, at) in [(7, 8), (2, 0), (5, 12), (1, 4)] {
            assert!(gather.hold(tag, range(at * KIB, 4 * KIB), now + Duration::from_millis(at)));
        }
        assert!(gather.hold(9, range(100 * KIB, 4 * KIB), now));
        assert_eq!(gather.due(), Some(now + Duration::from_millis(8) + WINDOW));
        let whole = Run { tags: vec![2, 1, 7, 5], range: range(0, 16 * KIB), gathered: 16 * KIB };
        let part = Run { tags: vec![9], range: range(100 * KIB, 0), gathered: 0 };
        assert_eq!(gather.release(), [whole, part]);
        assert_eq!((gather.due(), gather.release()), (None, vec![]));
    }

    #[test]
    fn what_was_whole_before_is_not_counted_as_gathered() {
        let mut gather = gather();
        let now = Instant::now();
        assert!(gather.hold(1, range(0, 24 * KIB), now));
        assert!(gather.hold(2, range(24 * KIB, 20 * KIB), now));
        let run = Run { tags: vec![1, 2], range: range(0, 32 * KIB), gathered: 16 * KIB };
        assert_eq!(gather.release(), [run]);
    }
}
