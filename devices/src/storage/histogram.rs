//! Counters and histograms with one writer: updated without atomic read-modify-write, read by any
//! thread at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations by magnitude: four buckets per power of two, from 256 ns to over a minute.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; Self::BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    /// Number of buckets.
    pub const BUCKETS: usize = 112;
    /// End of the first bucket, as a power of two of nanoseconds.
    const FIRST_LOG2: u32 = 8;

    /// Counts `times` events of the same duration.
    pub(super) fn record(&self, duration_ns: u64, times: u64) {
        if let Some(bucket) = self.buckets.get(Self::bucket(duration_ns)) {
            bucket.add(times);
        }
        self.sum_ns.add(duration_ns.saturating_mul(times));
    }

    /// Index of a duration's bucket. The last bucket has no upper bound.
    fn bucket(duration_ns: u64) -> usize {
        let scaled = (duration_ns >> (Self::FIRST_LOG2 - 2)).max(1);
        let log2 = scaled.ilog2();
        if log2 < 2 {
            return 0;
        }
        // The two bits below the leading one select the quarter of the power of two.
        let quarter = (scaled >> (log2 - 2)) & 3;
        let index = 1 + u64::from(log2 - 2) * 4 + quarter;
        usize::try_from(index).map_or(Self::BUCKETS - 1, |index| index.min(Self::BUCKETS - 1))
    }

    /// Exclusive upper bound of bucket `index`; `None` for the last bucket.
    #[must_use]
    pub fn bucket_end(index: usize) -> Option<Duration> {
        if index + 1 >= Self::BUCKETS {
            return None;
        }
        let (power, quarter) = (index / 4, index as u64 % 4);
        Some(Duration::from_nanos((4 + quarter) << (Self::FIRST_LOG2 as usize - 2 + power)))
    }

    /// Counts by bucket.
    pub fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.buckets.iter().map(Counter::get)
    }

    /// Sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_where_the_next_begins() {
        for index in 0..Histogram::BUCKETS - 1 {
            let end = Histogram::bucket_end(index).unwrap();
            let end = u64::try_from(end.as_nanos()).unwrap();
            assert_eq!(Histogram::bucket(end - 1), index, "below {end} ns");
            assert_eq!(Histogram::bucket(end), index + 1, "at {end} ns");
        }
        assert_eq!(Histogram::bucket(0), 0);
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
        assert_eq!(Histogram::bucket_end(Histogram::BUCKETS - 1), None);
    }

    #[test]
    fn buckets_range_from_microseconds_to_a_minute() {
        assert_eq!(Histogram::bucket_end(0), Some(Duration::from_nanos(256)));
        let last = Histogram::bucket_end(Histogram::BUCKETS - 2).unwrap();
        assert!(last > Duration::from_secs(17), "{last:?}");
    }
}
