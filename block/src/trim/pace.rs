//! How much of a discard the host is asked at once, and when it is asked for more.
//!
//! A file system keeps readers out of a file while it punches a hole, and a device its queue busy. So a discard goes in chunks
//! that take the host about a millisecond, one at a time per engine, and while reads and writes go on they have the
//! disk for themselves for most of the time.

use std::time::{Duration, Instant};

/// What a chunk should take.
const TARGET: Duration = Duration::from_millis(1);
/// While transfers go on, how many times as long as a chunk took there is none.
const REST: u32 = 4;
/// The longest rest: a host that hangs for once must not stop discards for good.
const LONGEST_REST: Duration = Duration::from_millis(100);
const FIRST: u64 = 16 << 20;
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 1 << 30;

/// The pace of one engine.
#[derive(Debug)]
pub(crate) struct Pace {
    granularity: u64,
    chunk: u64,
    /// When the chunk under way was asked for.
    asked: Option<Instant>,
    /// When the next may be.
    resume: Option<Instant>,
}

impl Pace {
    /// Chunks are whole granules, wherever the first one starts.
    pub(crate) fn new(granularity: u32) -> Self {
        let granularity = u64::from(granularity.max(1));
        Self { granularity, chunk: FIRST, asked: None, resume: None }
    }

    /// How much to ask for next, of a range that starts at a granule: all of it where it is not much more than a chunk.
    pub(crate) fn cut(&self, len: u64) -> u64 {
        let chunk = self.chunk.next_multiple_of(self.granularity);
        if len <= chunk.saturating_add(chunk / 4) { len } else { chunk }
    }

    /// Whether a chunk may be asked for now.
    pub(crate) fn is_ready(&self, now: Instant) -> bool {
        self.asked.is_none() && self.resume.is_none_or(|resume| resume <= now)
    }

    /// When a chunk may be asked for, if not now and if no answer comes first.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.resume
    }

    /// A chunk is asked for.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.asked = Some(now);
        self.resume = None;
    }

    /// The host has answered: so many bytes are done. `busy` if reads or writes went on meanwhile.
    pub(crate) fn end(&mut self, now: Instant, bytes: u64, busy: bool) {
        let Some(asked) = self.asked.take() else { return };
        let took = now.saturating_duration_since(asked);
        self.resume = busy.then(|| now + (took * REST).min(LONGEST_REST));
        // By no more than a factor of two, and only by what was a whole chunk.
        if took > TARGET {
            self.chunk = (self.chunk / 2).max(SMALLEST);
        } else if took < TARGET / 2 && bytes >= self.chunk {
            self.chunk = (self.chunk * 2).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn chunks_grow_on_a_fast_host_and_shrink_on_a_slow_one() {
        let mut pace = Pace::new(4096);
        let mut now = Instant::now();
        let mut chunk = |pace: &mut Pace, took: Duration| {
            let bytes = pace.cut(u64::MAX);
            pace.begin(now);
            now += took;
            pace.end(now, bytes, false);
            bytes >> 20
        };
        let fast: Vec<_> = (0..8).map(|_| chunk(&mut pace, MS / 10)).collect();
        assert_eq!(fast, [16, 32, 64, 128, 256, 512, 1024, 1024]);
        let slow: Vec<_> = (0..12).map(|_| chunk(&mut pace, 5 * MS)).collect();
        assert_eq!(slow, [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(chunk(&mut pace, 3 * MS / 4), 1);
        assert_eq!(chunk(&mut pace, MS / 100), 1);
        assert_eq!(chunk(&mut pace, MS), 2);
    }

    #[test]
    fn discards_rest_while_transfers_go_on() {
        let mut pace = Pace::new(4096);
        let now = Instant::now();
        assert!(pace.is_ready(now));
        pace.begin(now);
        assert!(!pace.is_ready(now + 10 * MS), "one is under way");
        pace.end(now + 2 * MS, 1, true);
        assert_eq!(pace.due(), Some(now + 10 * MS));
        assert!(!pace.is_ready(now + 9 * MS));
        assert!(pace.is_ready(now + 10 * MS));
        pace.begin(now + 10 * MS);
        pace.end(now + 3000 * MS, 1, true);
        assert_eq!(pace.due(), Some(now + 3100 * MS));
        pace.begin(now + 4000 * MS);
        pace.end(now + 4001 * MS, 1, false);
        assert!(pace.is_ready(now + 4001 * MS), "nobody else wants the disk");
    }

    #[test]
    fn a_chunk_is_whole_granules_and_leaves_no_crumbs() {
        let pace = Pace::new(3 << 20);
        assert_eq!(pace.cut(100 << 20), 18 << 20);
        assert_eq!(pace.cut(19 << 20), 19 << 20);
        assert_eq!(pace.cut(4096), 4096);
    }
}
