//! Discards of partial granules, delayed to be merged with their neighbours.
//!
//! The host deallocates whole granules only. A guest that discards parts of one, each in a request
//! of its own, would free nothing. So a discard that starts or ends within a granule is delayed by
//! a few milliseconds. It has not completed meanwhile: the guest cannot have written to its range
//! again, and no flush waits for it.

use std::time::{Duration, Instant};

use super::granules::Granules;
use crate::{ByteOffset, ByteRange};

/// How long a discard is delayed. A guest that discards many ranges issues them within this time;
/// one that waits for each loses no more than a seek of a disk.
const WINDOW: Duration = Duration::from_millis(2);

/// Adjacent discards, merged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MergedRange {
    /// Tags of the requests, at least one.
    pub(crate) tags: Vec<u16>,
    /// The whole granules of all of them, possibly none.
    pub(crate) range: ByteRange,
    /// Bytes of `range` whose granules no single request covers.
    pub(crate) gained: u64,
}

/// The delayed discards of one engine.
#[derive(Debug)]
pub(crate) struct MergeQueue {
    granules: Granules,
    delayed: Vec<(u16, ByteRange)>,
    due: Option<Instant>,
}

impl MergeQueue {
    pub(crate) fn new(granules: Granules) -> Self {
        Self { granules, delayed: Vec::new(), due: None }
    }

    /// Takes a discard that can gain by a merge; `false` if it consists of whole granules.
    pub(crate) fn delay(&mut self, tag: u16, range: ByteRange, now: Instant) -> bool {
        if self.granules.bytes_within(range) == range.len {
            return false;
        }
        self.delayed.push((tag, range));
        self.due.get_or_insert(now + WINDOW);
        true
    }

    /// Number of delayed requests.
    pub(crate) fn len(&self) -> usize {
        self.delayed.len()
    }

    /// Removes a request; `false` if it is not delayed.
    pub(crate) fn remove(&mut self, tag: u16) -> bool {
        let before = self.delayed.len();
        self.delayed.retain(|(delayed, _)| *delayed != tag);
        self.delayed.len() != before
    }

    /// When the delay of the first request ends.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Merges and returns everything.
    pub(crate) fn release(&mut self) -> Vec<MergedRange> {
        self.due = None;
        let mut delayed = std::mem::take(&mut self.delayed);
        delayed.sort_by_key(|(_, range)| range.start);
        let mut runs: Vec<Run> = Vec::new();
        for (tag, range) in delayed {
            match runs.last_mut().filter(|run| range.start.0 <= run.end) {
                Some(run) => run.add(tag, range, self.granules),
                None => runs.push(Run::new(tag, range, self.granules)),
            }
        }
        runs.into_iter().map(|run| run.finish(self.granules)).collect()
    }
}

/// A run of adjacent discards while it grows.
struct Run {
    tags: Vec<u16>,
    start: u64,
    end: u64,
    /// Bytes in whole granules of each request by itself. Overlapping requests count twice.
    alone: u64,
}

impl Run {
    fn new(tag: u16, range: ByteRange, granules: Granules) -> Self {
        let (start, end) = (range.start.0, range.start.0 + range.len);
        Self { tags: vec![tag], start, end, alone: granules.bytes_within(range) }
    }

    fn add(&mut self, tag: u16, range: ByteRange, granules: Granules) {
        self.tags.push(tag);
        self.end = self.end.max(range.start.0 + range.len);
        self.alone += granules.bytes_within(range);
    }

    fn finish(self, granules: Granules) -> MergedRange {
        let (start, end) = granules.within(self.start, self.end);
        let len = end - start;
        let range = ByteRange { start: ByteOffset(start), len };
        MergedRange { tags: self.tags, range, gained: len.saturating_sub(self.alone) }
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

    /// A queue with granules of 16 KiB.
    fn queue() -> MergeQueue {
        let limits = DiscardLimits { granularity: 16 << 10, alignment: 0, reads_zero: true };
        MergeQueue::new(Granules::new(limits))
    }

    #[test]
    fn whole_granules_are_not_delayed() {
        let mut queue = queue();
        assert!(!queue.delay(1, range(16 * KIB, 32 * KIB), Instant::now()));
        assert_eq!(queue.due(), None);
    }

    #[test]
    fn adjacent_partial_granules_are_merged() {
        let mut queue = queue();
        let now = Instant::now();
        // Out of order, as from four queues of a guest.
        for (tag, at) in [(7, 8), (2, 0), (5, 12), (1, 4)] {
            assert!(queue.delay(tag, range(at * KIB, 4 * KIB), now + Duration::from_millis(at)));
        }
        assert!(queue.delay(9, range(100 * KIB, 4 * KIB), now));
        assert_eq!(queue.due(), Some(now + Duration::from_millis(8) + WINDOW));
        let tags = vec![2, 1, 7, 5];
        let whole = MergedRange { tags, range: range(0, 16 * KIB), gained: 16 * KIB };
        let part = MergedRange { tags: vec![9], range: range(100 * KIB, 0), gained: 0 };
        assert_eq!(queue.release(), [whole, part]);
        assert_eq!((queue.due(), queue.release()), (None, vec![]));
    }

    #[test]
    fn granules_of_a_single_request_are_not_gained() {
        let mut queue = queue();
        let now = Instant::now();
        assert!(queue.delay(1, range(0, 24 * KIB), now));
        assert!(queue.delay(2, range(24 * KIB, 20 * KIB), now));
        let tags = vec![1, 2];
        let merged = MergedRange { tags, range: range(0, 32 * KIB), gained: 16 * KIB };
        assert_eq!(queue.release(), [merged]);
    }

    #[test]
    fn the_delay_is_two_milliseconds_from_the_first_request() {
        let mut queue = queue();
        let now = Instant::now();
        for tag in 0..4 {
            let start = u64::from(tag) * 4 * KIB;
            assert!(queue.delay(tag, range(start, 4 * KIB), now + Duration::from_millis(1)));
        }
        assert_eq!((queue.len(), queue.due()), (4, Some(now + Duration::from_millis(3))));
        assert!(queue.remove(1) && !queue.remove(1));
        assert_eq!(queue.len(), 3);
    }
}
