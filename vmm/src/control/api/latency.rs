//! Copies of histograms, summed and summarised. Control socket thread.

use std::time::Duration;

use devices::storage::Histogram;

use super::model::{Bucket, Latency};

/// Samples in each bucket of [`Histogram`].
pub(super) struct Counts {
    buckets: [u64; Histogram::BUCKETS],
    sum_ns: u64,
}

impl Counts {
    /// The sum of `histograms`.
    pub(super) fn of<'h>(histograms: impl IntoIterator<Item = &'h Histogram>) -> Self {
        let mut counts = Self { buckets: [0; Histogram::BUCKETS], sum_ns: 0 };
        for histogram in histograms {
            for (bucket, count) in counts.buckets.iter_mut().zip(histogram.counts()) {
                *bucket += count;
            }
            counts.sum_ns = counts.sum_ns.saturating_add(nanoseconds(histogram.sum()));
        }
        counts
    }

    /// Number of samples.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of all samples.
    pub(super) fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The end of each bucket that has one, and the number of samples below it.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.buckets.iter().enumerate().scan(0, |below, (index, count)| {
            *below += count;
            Some((Histogram::bucket_end(index)?, *below))
        })
    }

    /// The end of the bucket below which `percent` of the samples are, if it has one.
    fn percentile_ns(&self, percent: u64) -> Option<u64> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let (end, _) = self.cumulative().find(|(_, below)| *below >= rank)?;
        Some(nanoseconds(end))
    }

    pub(super) fn summary(&self) -> Latency {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        Latency {
            count: self.count(),
            sum_ns: self.sum_ns,
            p50_ns: self.percentile_ns(50),
            p99_ns: self.percentile_ns(99),
            max_ns: self.percentile_ns(100),
            buckets: filled
                .map(|(index, count)| Bucket {
                    up_to_ns: Histogram::bucket_end(index).map(nanoseconds),
                    count: *count,
                })
                .collect(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts from pairs of bucket index and number of samples.
    fn counts(filled: &[(usize, u64)]) -> Counts {
        let mut counts = Counts::of([]);
        for (index, count) in filled {
            counts.buckets[*index] = *count;
        }
        counts
    }

    fn end(index: usize) -> Option<u64> {
        Histogram::bucket_end(index).map(nanoseconds)
    }

    fn figures(filled: &[(usize, u64)]) -> [Option<u64>; 3] {
        let Latency { p50_ns, p99_ns, max_ns, .. } = counts(filled).summary();
        [p50_ns, p99_ns, max_ns]
    }

    #[test]
    fn percentiles_are_the_ends_of_their_buckets() {
        assert_eq!(figures(&[]), [None; 3]);
        assert_eq!(figures(&[(5, 1)]), [end(5); 3]);
        assert_eq!(figures(&[(5, 99), (30, 1)]), [end(5), end(5), end(30)]);
        assert_eq!(figures(&[(5, 98), (30, 2)]), [end(5), end(30), end(30)]);
        assert_eq!(figures(&[(5, 50), (30, 50)]), [end(5), end(30), end(30)]);
        assert_eq!(figures(&[(5, 49), (30, 51)]), [end(30); 3]);
    }

    #[test]
    fn the_unbounded_bucket_has_no_percentile() {
        let last = Histogram::BUCKETS - 1;
        assert_eq!(figures(&[(0, 60), (last, 40)]), [end(0), None, None]);
        let summary = counts(&[(0, 60), (last, 40)]).summary();
        assert_eq!(summary.count, 100);
        assert_eq!(summary.buckets[1], Bucket { up_to_ns: None, count: 40 });
    }

    #[test]
    fn cumulative_counts_add_up() {
        let counts = counts(&[(0, 2), (7, 3), (Histogram::BUCKETS - 1, 4)]);
        let below: Vec<_> = counts.cumulative().map(|(_, below)| below).collect();
        assert_eq!(below.len(), Histogram::BUCKETS - 1);
        assert_eq!((below[0], below[6], below[7], below.last()), (2, 2, 5, Some(&5)));
    }
}
