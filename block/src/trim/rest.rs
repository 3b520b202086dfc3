//! How long discards rest between two chunks while reads and writes go on.
//!
//! Whoever meets a chunk waits for it, for so long as it takes: that is the host's. How many meet one is ours. So a rest is not
//! over after a time but once so many transfers have gone by that those who met the chunk are few among them.

use std::time::{Duration, Instant};

use super::activity::Traffic;

/// How many transfers go by for each that met the chunk. A hundred would leave it just out of their 99th percentile.
const UNHINDERED: u64 = 256;
/// How many times as long as the chunk took a rest is at least.
const LEAST: u32 = 4;
/// The longest rest: neither slow transfers nor a host that hangs for once stop discards for good.
const LONGEST: Duration = Duration::from_millis(250);
/// Transfers of which none ends in this time wait for something else than the disk: for space, which a discard may give.
const STUCK: Duration = Duration::from_millis(50);
/// How often to look, at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rest {
    since: Instant,
    /// When to look whether it is over.
    due: Instant,
    /// How many transfers met the chunk.
    met: u64,
    /// How many had ended when it began.
    ended: u64,
    /// When one was last seen to end, and how many had.
    moved: (Instant, u64),
}

impl Rest {
    /// The rest after a chunk that took so long and was met by so many transfers.
    pub(super) fn after(took: Duration, met: u64, now: Instant, traffic: Traffic) -> Self {
        let least = (took * LEAST).min(LONGEST);
        let ended = traffic.ended;
        Self { since: now, due: now + least, met: met.max(1), ended, moved: (now, ended) }
    }

    /// When to look whether it is over.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is over; to be asked once it is due. If it is not, it is due anew.
    pub(super) fn is_over(&mut self, now: Instant, traffic: Traffic) -> bool {
        let rested = now.saturating_duration_since(self.since);
        let (went_by, wanted) = (self.went_by(traffic), self.met.saturating_mul(UNHINDERED));
        if went_by >= wanted || rested >= LONGEST || self.stands_still(now, traffic) {
            return true;
        }
        let left = times(rested, wanted - went_by, went_by).unwrap_or(Duration::MAX);
        self.due = now + left.clamp(LOOKS.0, LOOKS.1);
        false
    }

    /// How long one transfer took meanwhile, if any has ended: of so many in flight, so many ended in that time.
    pub(super) fn transfer_took(&self, now: Instant, traffic: Traffic) -> Option<Duration> {
        times(now.saturating_duration_since(self.since), self.met, self.went_by(traffic))
    }

    /// How many transfers ended since the host answered a chunk, that of another engine too.
    fn went_by(&self, traffic: Traffic) -> u64 {
        traffic.ended.saturating_sub(self.ended.max(traffic.ended_at_chunk))
    }

    /// Whether nobody transfers any more.
    fn stands_still(&mut self, now: Instant, traffic: Traffic) -> bool {
        let (moved, ended) = self.moved;
        if ended != traffic.ended {
            self.moved = (now, traffic.ended);
            return false;
        }
        traffic.in_flight == 0 || now.saturating_duration_since(moved) >= STUCK
    }
}

/// A part of a time, or several times it.
fn times(time: Duration, factor: u64, divisor: u64) -> Option<Duration> {
    let nanos = time.as_nanos().saturating_mul(factor.into()).checked_div(divisor.into())?;
    Some(Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn traffic(ended: u64, in_flight: u64) -> Traffic {
        Traffic { ended, in_flight, ended_at_chunk: 0 }
    }

    /// Looks whenever the rest is due, while so many transfers end in each millisecond. How long it was.
    fn rest(took: Duration, in_flight: u64, per_ms: u64) -> Duration {
        let start = Instant::now();
        let mut rest = Rest::after(took, in_flight, start, traffic(1000, in_flight));
        let mut look = || {
            let rested = rest.due() - start;
            let ended = u64::try_from(rested.as_micros()).unwrap() * per_ms / 1000;
            rest.is_over(rest.due(), traffic(1000 + ended, in_flight)).then_some(rested)
        };
        (0..1000).find_map(|_| look()).expect("it ends")
    }

    #[test]
    fn so_many_transfers_go_by_for_each_that_met_the_chunk() {
        let about = |rested: Duration, ms: u32| (ms * MS..(ms + 2) * MS).contains(&rested);
        assert!(about(rest(MS, 1, 10), 25), "one at a time");
        assert!(about(rest(MS, 32, 100), 81), "many at a time");
        assert!(about(rest(MS, 1, 1000), 4), "never less than four times what the chunk took");
    }

    #[test]
    fn a_rest_ends_with_the_256th_transfer_for_each_that_met_the_chunk() {
        let start = Instant::now();
        for (met, wanted) in [(0, 256), (1, 256), (3, 768)] {
            let mut rest = Rest::after(MS, met, start, traffic(1000, 1));
            assert!(!rest.is_over(start + 4 * MS, traffic(1000 + wanted - 1, 1)));
            assert!(rest.is_over(start + 5 * MS, traffic(1000 + wanted, 1)));
        }
    }

    #[test]
    fn a_rest_is_looked_at_when_it_may_be_over() {
        let start = Instant::now();
        let mut rest = Rest::after(MS, 1, start, traffic(0, 1));
        // So many in 16 ms: the others take 8 ms.
        assert!(!rest.is_over(start + 16 * MS, traffic(128 + 128 / 3, 1)));
        assert_eq!((rest.due() - start).as_millis(), 24);
        assert!(!rest.is_over(start + 24 * MS, traffic(255, 1)));
        assert_eq!(rest.due() - start, 25 * MS, "not at once");
        let mut rest = Rest::after(MS, 1, start, traffic(0, 1));
        assert!(!rest.is_over(start + 4 * MS, traffic(1, 1)));
        assert_eq!(rest.due() - start, 14 * MS, "not after a second");
    }

    #[test]
    fn slow_transfers_do_not_stop_discards_for_good() {
        let rested = rest(MS, 32, 1);
        assert!((250 * MS..=260 * MS).contains(&rested), "{rested:?}");
        assert_eq!(rest(3000 * MS, 1, 1000), 250 * MS, "nor a host that hung");
    }

    #[test]
    fn nobody_is_waited_for_who_transfers_no_more() {
        assert_eq!(rest(MS, 0, 0), 4 * MS);
        let rested = rest(MS, 5, 0);
        assert!((50 * MS..60 * MS).contains(&rested), "{rested:?}");
    }

    #[test]
    fn transfers_are_stuck_50_ms_after_the_last_has_ended() {
        let start = Instant::now();
        let mut rest = Rest::after(MS, 5, start, traffic(0, 5));
        for (ms, ended, over) in [(49, 1, false), (98, 1, false), (99, 2, false), (148, 2, false)] {
            assert_eq!(rest.is_over(start + ms * MS, traffic(ended, 5)), over, "{ms} ms");
        }
        assert!(rest.is_over(start + 149 * MS, traffic(2, 5)));
    }

    #[test]
    fn a_chunk_of_another_engine_is_rested_from_too() {
        let start = Instant::now();
        let mut rest = Rest::after(MS, 1, start, traffic(0, 1));
        let met_again = Traffic { ended: 300, in_flight: 1, ended_at_chunk: 100 };
        assert!(!rest.is_over(start + 4 * MS, met_again));
        assert!(rest.is_over(start + 5 * MS, Traffic { ended: 356, ..met_again }));
    }

    #[test]
    fn a_transfer_takes_its_share_of_the_time() {
        let start = Instant::now();
        let rest = Rest::after(MS, 4, start, traffic(0, 4));
        assert_eq!(rest.transfer_took(start + 10 * MS, traffic(20, 4)), Some(2 * MS));
        assert_eq!(rest.transfer_took(start + 10 * MS, traffic(0, 4)), None);
    }
}
