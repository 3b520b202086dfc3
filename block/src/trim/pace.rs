//! How much of a discard the host is asked at once, and when it is asked for more.
//!
//! A file system keeps readers out of a file while it punches a hole, once those that are in it are done; a device its queue busy.
//! So a discard goes in chunks, one at a time per engine, that take the host about two milliseconds, or as long as a transfer where that is
//! longer: then a transfer that meets one takes no more than twice its time. Between chunks is a [`Rest`].

use std::time::{Duration, Instant};

use super::activity::Traffic;
use super::rest::Rest;

/// What a chunk should take.
const TARGET: Duration = Duration::from_millis(2);
/// What transfers may make more of it.
const LONGEST_TRANSFER: Duration = Duration::from_millis(50);
/// Discards of a guest may time out, those of Linux on SCSI disks after 30 s. Those that wait for so long rest no longer
/// than they must.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST: u64 = 4 << 20;
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 1 << 30;

/// The pace of one engine.
#[derive(Debug)]
pub(crate) struct Pace {
    granularity: u64,
    chunk: u64,
    /// When the chunk under way was asked for.
    asked: Option<Instant>,
    /// What there is before the next.
    rest: Option<Rest>,
    /// What went on at the last look.
    seen: Traffic,
    /// How long a transfer took during the last rest.
    transfer: Duration,
}

impl Pace {
    /// Chunks are whole granules, wherever the first one starts.
    pub(crate) fn new(granularity: u32) -> Self {
        Self {
            granularity: u64::from(granularity.max(1)),
            chunk: FIRST,
            asked: None,
            rest: None,
            seen: Traffic::default(),
            transfer: Duration::ZERO,
        }
    }

    /// How much to ask for next, of a range that starts at a granule: all of it where it is not much more than a chunk.
    pub(crate) fn cut(&self, len: u64) -> u64 {
        let chunk = self.chunk.next_multiple_of(self.granularity);
        if len <= chunk.saturating_add(chunk / 4) { len } else { chunk }
    }

    /// Whether a chunk is under way.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether a chunk may be asked for now, of discards that have waited for so long. What goes on is looked at only where
    /// that matters.
    pub(crate) fn is_ready(
        &mut self,
        now: Instant,
        waited: Duration,
        look: impl FnOnce() -> Traffic,
    ) -> bool {
        let Some(rest) = &mut self.rest else { return !self.is_asked() };
        if now < rest.due() {
            return false;
        }
        let traffic = look();
        if !rest.is_over(now, traffic) && waited < PATIENCE {
            return false;
        }
        let took = rest.transfer_took(now, traffic).unwrap_or_default();
        self.transfer = took.min(LONGEST_TRANSFER);
        (self.rest, self.seen) = (None, traffic);
        true
    }

    /// When to see again whether a chunk may be asked for, if no answer comes first.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.rest.as_ref().map(Rest::due)
    }

    /// A chunk is asked for.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// The host has answered: so many bytes are done.
    pub(crate) fn end(&mut self, now: Instant, bytes: u64, traffic: Traffic) {
        let Some(asked) = self.asked.take() else { return };
        let took = now.saturating_duration_since(asked);
        if traffic.in_flight > 0 || traffic.ended != self.seen.ended {
            let met = traffic.in_flight.max(self.seen.in_flight);
            self.rest = Some(Rest::after(took, met, now, traffic));
        }
        // The file system waits for the transfers that are in the file, then they for it.
        let target = TARGET + 2 * self.transfer;
        // By no more than a factor of two, and only by what was a whole chunk.
        if took > target {
            self.chunk = (self.chunk / 2).max(SMALLEST);
        } else if took < target / 2 && bytes >= self.chunk {
            self.chunk = (self.chunk * 2).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const IDLE: Traffic = Traffic { ended: 0, in_flight: 0, ended_at_chunk: 0 };

    fn is_ready(pace: &mut Pace, now: Instant, traffic: Traffic) -> bool {
        pace.is_ready(now, Duration::ZERO, || traffic)
    }

    #[test]
    fn chunks_grow_on_a_fast_host_and_shrink_on_a_slow_one() {
        let mut pace = Pace::new(4096);
        let mut now = Instant::now();
        let mut chunk = |pace: &mut Pace, took: Duration| {
            let bytes = pace.cut(u64::MAX);
            pace.begin(now);
            now += took;
            pace.end(now, bytes, IDLE);
            bytes >> 20
        };
        let fast: Vec<_> = (0..10).map(|_| chunk(&mut pace, MS / 10)).collect();
        assert_eq!(fast, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        let slow: Vec<_> = (0..12).map(|_| chunk(&mut pace, 5 * MS)).collect();
        assert_eq!(slow, [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(chunk(&mut pace, 3 * MS / 2), 1);
        assert_eq!(chunk(&mut pace, MS / 100), 1);
        assert_eq!(chunk(&mut pace, MS), 2);
    }

    /// After a rest of 250 ms in which so many transfers ended one after the other, and a chunk that took so many µs: how
    /// many MiB the next one is.
    fn chunk_after(ended: u64, took_us: u64) -> u64 {
        let (mut pace, now) = (Pace::new(4096), Instant::now());
        pace.begin(now);
        pace.end(now, 1, Traffic { in_flight: 1, ..IDLE });
        let rested = now + 250 * MS;
        assert!(is_ready(&mut pace, rested, Traffic { ended, ..IDLE }));
        pace.begin(rested);
        pace.end(rested + Duration::from_micros(took_us), pace.cut(u64::MAX), IDLE);
        pace.cut(u64::MAX) >> 20
    }

    #[test]
    fn a_chunk_may_take_two_milliseconds_and_twice_as_long_as_a_transfer() {
        let chunks = |ended, took_us: [u64; 4]| took_us.map(|us| chunk_after(ended, us));
        assert_eq!(chunks(0, [2_001, 2_000, 1_000, 999]), [2, 4, 4, 8]);
        assert_eq!(chunks(25, [22_001, 22_000, 11_000, 10_999]), [2, 4, 4, 8], "10 ms each");
        assert_eq!(chunks(2, [102_001, 102_000, 51_000, 50_999]), [2, 4, 4, 8], "50 ms at most");
    }

    /// The rest after a chunk, of what went on at the look before it and what at its end.
    fn rest_after(before: Traffic, end: Traffic) -> Option<Rest> {
        let (mut pace, now) = (Pace::new(4096), Instant::now());
        pace.begin(now);
        pace.end(now, 1, Traffic { in_flight: 1, ..IDLE });
        assert!(is_ready(&mut pace, now + 250 * MS, before));
        pace.begin(now + 250 * MS);
        pace.end(now + 251 * MS, 1, end);
        pace.rest
    }

    #[test]
    fn those_in_flight_at_either_end_of_a_chunk_and_those_between_are_rested_for() {
        let traffic = |ended, in_flight| Traffic { ended, in_flight, ended_at_chunk: ended };
        assert!(rest_after(traffic(5, 0), traffic(5, 0)).is_none(), "nobody wants the disk");
        let wanted = |before, end: Traffic| {
            let mut rest = rest_after(before, end)?;
            let due = rest.due();
            (1..).find(|ended| rest.is_over(due, Traffic { ended: end.ended + ended, ..end }))
        };
        assert_eq!(wanted(traffic(5, 1), traffic(5, 1)), Some(256));
        assert_eq!(wanted(traffic(5, 0), traffic(6, 0)), Some(256));
        assert_eq!(wanted(traffic(5, 3), traffic(7, 1)), Some(768));
        assert_eq!(wanted(traffic(5, 1), traffic(5, 3)), Some(768));
    }

    #[test]
    fn discards_rest_while_transfers_go_on() {
        let mut pace = Pace::new(4096);
        let now = Instant::now();
        assert!(is_ready(&mut pace, now, IDLE));
        pace.begin(now);
        assert!(!is_ready(&mut pace, now + 10 * MS, IDLE), "one is under way");
        let busy = Traffic { ended: 10, in_flight: 1, ended_at_chunk: 10 };
        pace.end(now + 2 * MS, 1, busy);
        assert_eq!(pace.due(), Some(now + 10 * MS));
        assert!(!is_ready(&mut pace, now + 9 * MS, Traffic { ended: 1000, ..busy }));
        assert!(!is_ready(&mut pace, now + 10 * MS, Traffic { ended: 20, ..busy }));
        assert_eq!(pace.due(), Some(now + 20 * MS));
        assert!(is_ready(&mut pace, now + 20 * MS, Traffic { ended: 266, ..busy }));
        pace.begin(now + 20 * MS);
        let idle = Traffic { ended: 266, in_flight: 0, ended_at_chunk: 266 };
        pace.end(now + 21 * MS, 1, idle);
        assert!(is_ready(&mut pace, now + 21 * MS, idle), "nobody else wants the disk");
    }

    #[test]
    fn a_guest_that_has_waited_for_long_waits_no_longer_than_needs_be() {
        let mut pace = Pace::new(4096);
        let now = Instant::now();
        let busy = Traffic { ended: 10, in_flight: 1, ended_at_chunk: 10 };
        pace.begin(now);
        pace.end(now + MS, 1, busy);
        let moved = Traffic { ended: 20, ..busy };
        let ten_seconds = Duration::from_secs(10);
        assert!(!pace.is_ready(now + 4 * MS, ten_seconds, || moved));
        assert!(!pace.is_ready(now + 5 * MS, ten_seconds - MS, || moved));
        assert!(pace.is_ready(now + 15 * MS, ten_seconds, || moved));
    }

    #[test]
    fn a_chunk_is_whole_granules_and_leaves_no_crumbs() {
        let pace = Pace::new(3 << 20);
        assert_eq!(pace.cut(100 << 20), 6 << 20);
        assert_eq!(pace.cut(15 << 19), 15 << 19);
        assert_eq!(pace.cut((15 << 19) + 512), 6 << 20);
        assert_eq!(pace.cut(4096), 4096);
        assert_eq!(Pace::new(0).cut(100 << 20), 4 << 20, "a host that names none");
    }
}
