//! The pause between two discard chunks while reads and writes go on.
//!
//! A transfer that hits a chunk waits until the host finishes it. We control only how many do. So
//! the pause has no fixed length: it ends when enough transfers have completed undelayed that those
//! which hit the chunk are few among them.
//!
//! A small discard cannot be chunked, and a file system full of small holes has many of them. If
//! they usually take no longer than three transfers, a transfer that hits one takes at most four
//! times its mean, as the slowest in a hundred do anyway: then only the share of time that discards
//! take is limited, to a half.

use std::time::{Duration, Instant};

use super::io_load::LoadSample;

/// Transfers that complete undelayed for each one that hit the chunk. With 100 the delayed ones
/// would just be beyond the 99th percentile.
const UNDELAYED: u64 = 256;
/// The same for small discards, of which there are many.
const UNDELAYED_SMALL: u64 = 128;
/// Minimum of a cooldown, as a multiple of the chunk's duration.
const MIN_FACTOR: u32 = 4;
/// The same after a small discard.
const MIN_FACTOR_SMALL: u32 = 1;
/// Maximum duration of short discards, as a multiple of a transfer's.
const SHORT: u32 = 3;
/// Maximum of a cooldown: neither slow transfers nor a stalled host stop discards for good.
const MAX: Duration = Duration::from_millis(250);
/// If no transfer completes in this time, those in flight wait for something other than the disk,
/// such as free space, which a discard may provide.
const STALLED: Duration = Duration::from_millis(50);
/// Interval between two checks, minimum and maximum.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A discard smaller than a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct SmallDiscard {
    /// Usual duration of these.
    pub(super) usual: Duration,
    pub(super) submitted: Instant,
    /// Transfers completed before it was submitted.
    pub(super) completed: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Cooldown {
    start: Instant,
    /// `None` after a chunk of a larger discard.
    small: Option<SmallDiscard>,
    /// Time of the next check.
    due: Instant,
    /// Transfers that hit the chunk.
    hit: u64,
    /// Transfers completed before the start.
    completed: u64,
    /// Time of the last check that found a transfer completed, and how many had then.
    progress: (Instant, u64),
}

impl Cooldown {
    /// The cooldown after a chunk that took `chunk` and was hit by `hit` transfers. `small` is that
    /// chunk if it was a small discard.
    pub(super) fn after(
        chunk: Duration,
        small: Option<SmallDiscard>,
        hit: u64,
        now: Instant,
        load: LoadSample,
    ) -> Self {
        let min = chunk * if small.is_some() { MIN_FACTOR_SMALL } else { MIN_FACTOR };
        let completed = load.completed;
        Self {
            start: now,
            small,
            due: now + min.min(MAX),
            hit: hit.max(1),
            completed,
            progress: (now, completed),
        }
    }

    /// Time of the next check.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Checks whether the cooldown is over; called once it is due. If it is not, sets the time of
    /// the next check.
    pub(super) fn is_over(&mut self, now: Instant, load: LoadSample) -> bool {
        let elapsed = now.saturating_duration_since(self.start);
        let for_each = if self.small.is_some() { UNDELAYED_SMALL } else { UNDELAYED };
        let (undelayed, wanted) = (self.undelayed(load), self.hit.saturating_mul(for_each));
        if undelayed >= wanted || elapsed >= MAX || self.is_stalled(now, load) {
            return true;
        }
        if self.is_short(now, load) {
            return true;
        }
        let left = scale(elapsed, wanted - undelayed, undelayed).unwrap_or(Duration::MAX);
        self.due = now + left.clamp(INTERVALS.0, INTERVALS.1);
        false
    }

    /// Whether the chunk was a small discard, and these take no longer than [`SHORT`] transfers.
    ///
    /// The mean of a transfer is that since the discard was submitted: those that hit it complete
    /// at once when it ends, which a short cooldown alone would take for their usual rate. If none
    /// has completed, each takes longer than that time.
    fn is_short(&self, now: Instant, load: LoadSample) -> bool {
        self.small.is_some_and(|small| {
            let elapsed = now.saturating_duration_since(small.submitted);
            let completed = load.completed.saturating_sub(small.completed);
            small.usual <= SHORT * scale(elapsed, self.hit, completed).unwrap_or(elapsed)
        })
    }

    /// Mean duration of a transfer during the cooldown; `None` if none has completed.
    pub(super) fn transfer_duration(&self, now: Instant, load: LoadSample) -> Option<Duration> {
        scale(now.saturating_duration_since(self.start), self.hit, self.undelayed(load))
    }

    /// Transfers completed since the host last completed a chunk, also one of another engine.
    fn undelayed(&self, load: LoadSample) -> u64 {
        load.completed.saturating_sub(self.completed.max(load.completed_at_chunk))
    }

    /// Whether no transfer completes any longer.
    fn is_stalled(&mut self, now: Instant, load: LoadSample) -> bool {
        let (since, completed) = self.progress;
        if completed != load.completed {
            self.progress = (now, load.completed);
            return false;
        }
        load.in_flight == 0 || now.saturating_duration_since(since) >= STALLED
    }
}

/// `time * factor / divisor`; `None` if the divisor is zero.
fn scale(time: Duration, factor: u64, divisor: u64) -> Option<Duration> {
    let nanos = time.as_nanos().saturating_mul(factor.into()).checked_div(divisor.into())?;
    Some(Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn load(completed: u64, in_flight: u64) -> LoadSample {
        LoadSample { completed, in_flight, completed_at_chunk: 0 }
    }

    /// Duration of a cooldown that is checked whenever it is due, while `per_ms` transfers complete
    /// in each millisecond.
    fn duration(chunk: Duration, in_flight: u64, per_ms: u64) -> Duration {
        duration_after(chunk, None, in_flight, per_ms)
    }

    /// The same after a small discard, whose usual duration is `small`, and during which no
    /// transfer completed.
    fn duration_after(
        chunk: Duration,
        small: Option<Duration>,
        in_flight: u64,
        per_ms: u64,
    ) -> Duration {
        let (start, sample) = (Instant::now(), load(1000, in_flight));
        let submitted = start.checked_sub(chunk).unwrap();
        let small = small.map(|usual| SmallDiscard { usual, submitted, completed: 1000 });
        let mut cooldown = Cooldown::after(chunk, small, in_flight, start, sample);
        let mut check = || {
            let elapsed = cooldown.due() - start;
            let completed = u64::try_from(elapsed.as_micros()).unwrap() * per_ms / 1000;
            cooldown.is_over(cooldown.due(), load(1000 + completed, in_flight)).then_some(elapsed)
        };
        (0..1000).find_map(|_| check()).expect("it ends")
    }

    #[test]
    fn the_duration_depends_on_the_transfers_completed() {
        let about = |elapsed: Duration, ms: u32| (ms * MS..(ms + 2) * MS).contains(&elapsed);
        assert!(about(duration(MS, 1, 10), 25), "one at a time");
        assert!(about(duration(MS, 32, 100), 81), "many at a time");
        assert!(about(duration(MS, 1, 1000), 4), "at least four times the duration of the chunk");
    }

    #[test]
    fn it_ends_with_the_256th_transfer_for_each_that_hit_the_chunk() {
        let start = Instant::now();
        for (hit, wanted) in [(0, 256), (1, 256), (3, 768)] {
            let mut cooldown = Cooldown::after(MS, None, hit, start, load(1000, 1));
            assert!(!cooldown.is_over(start + 4 * MS, load(1000 + wanted - 1, 1)));
            assert!(cooldown.is_over(start + 5 * MS, load(1000 + wanted, 1)));
        }
    }

    #[test]
    fn it_is_checked_when_it_may_be_over() {
        let start = Instant::now();
        let mut cooldown = Cooldown::after(MS, None, 1, start, load(0, 1));
        // At this rate the rest take 8 ms.
        assert!(!cooldown.is_over(start + 16 * MS, load(128 + 128 / 3, 1)));
        assert_eq!((cooldown.due() - start).as_millis(), 24);
        assert!(!cooldown.is_over(start + 24 * MS, load(255, 1)));
        assert_eq!(cooldown.due() - start, 25 * MS, "not immediately");
        let mut cooldown = Cooldown::after(MS, None, 1, start, load(0, 1));
        assert!(!cooldown.is_over(start + 4 * MS, load(1, 1)));
        assert_eq!(cooldown.due() - start, 14 * MS, "not after a second");
    }

    #[test]
    fn slow_transfers_do_not_stop_discards_for_good() {
        let elapsed = duration(MS, 32, 1);
        assert!((250 * MS..=260 * MS).contains(&elapsed), "{elapsed:?}");
        assert_eq!(duration(3000 * MS, 1, 1000), 250 * MS, "nor does a stalled host");
    }

    #[test]
    fn small_discards_no_longer_than_three_transfers_take_half_of_the_time() {
        let small = |small, in_flight, per_ms| duration_after(MS, Some(small), in_flight, per_ms);
        // Transfers of 0.5 ms, one or 32 at a time.
        let usual = MS * 3 / 2;
        assert_eq!((small(usual, 1, 2), small(usual, 32, 64)), (MS, MS));
        assert_eq!((small(usual, 32, 1), small(usual, 5, 0)), (MS, MS), "slower transfers");
        assert_eq!(duration_after(9 * MS, Some(MS), 1, 2), 9 * MS, "one is slow");
        let longer = small(4 * MS, 1, 2);
        assert!((64 * MS..66 * MS).contains(&longer), "usually longer: {longer:?}");
        let large = duration(MS, 1, 2);
        assert!((128 * MS..130 * MS).contains(&large), "a chunk of a larger one: {large:?}");
    }

    /// Eight transfers hit a discard of 1 ms and complete 0.1 ms after its end.
    #[test]
    fn transfers_that_complete_together_do_not_count_as_fast_ones() {
        let start = Instant::now();
        let small = SmallDiscard { usual: MS, submitted: start - MS, completed: 0 };
        let mut cooldown = Cooldown::after(MS / 10, Some(small), 8, start, load(0, 8));
        assert!(cooldown.is_over(start + MS / 10, load(8, 8)));
    }

    #[test]
    fn it_ends_early_without_transfers() {
        assert_eq!(duration(MS, 0, 0), 4 * MS);
        let elapsed = duration(MS, 5, 0);
        assert!((50 * MS..60 * MS).contains(&elapsed), "{elapsed:?}");
    }

    #[test]
    fn it_ends_50_ms_after_the_last_completion() {
        let start = Instant::now();
        let mut cooldown = Cooldown::after(MS, None, 5, start, load(0, 5));
        for (ms, completed, over) in
            [(49, 1, false), (98, 1, false), (99, 2, false), (148, 2, false)]
        {
            assert_eq!(cooldown.is_over(start + ms * MS, load(completed, 5)), over, "{ms} ms");
        }
        assert!(cooldown.is_over(start + 149 * MS, load(2, 5)));
    }

    #[test]
    fn a_chunk_of_another_engine_extends_it() {
        let start = Instant::now();
        let mut cooldown = Cooldown::after(MS, None, 1, start, load(0, 1));
        let other = LoadSample { completed: 300, in_flight: 1, completed_at_chunk: 100 };
        assert!(!cooldown.is_over(start + 4 * MS, other));
        assert!(cooldown.is_over(start + 5 * MS, LoadSample { completed: 356, ..other }));
    }

    #[test]
    fn the_mean_duration_of_a_transfer_is_measured() {
        let start = Instant::now();
        let cooldown = Cooldown::after(MS, None, 4, start, load(0, 4));
        assert_eq!(cooldown.transfer_duration(start + 10 * MS, load(20, 4)), Some(2 * MS));
        assert_eq!(cooldown.transfer_duration(start + 10 * MS, load(0, 4)), None);
    }
}
