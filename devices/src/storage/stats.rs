//! What one queue of a disk has done: counters and latencies.
//!
//! Written by the queue's worker alone, without atomic read-modify-write, and read by anyone at any
//! time. A reader sees each figure whole but not all of one moment.
//!
//! A request's time here has three parts, without gap or overlap: `wait`, `backend`, `completion`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::Operation;

/// A count that one thread adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    fn add(&self, amount: u64) {
        self.0.store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The count so far.
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
    /// The first bucket ends here, as a power of two of nanoseconds.
    const FIRST_LOG2: u32 = 8;

    /// Counts `times` events of the same duration.
    fn record(&self, duration_ns: u64, times: u64) {
        if let Some(bucket) = self.buckets.get(Self::bucket(duration_ns)) {
            bucket.add(times);
        }
        self.sum_ns.add(duration_ns.saturating_mul(times));
    }

    /// The bucket of a duration; the last one takes all that is longer.
    fn bucket(duration_ns: u64) -> usize {
        let scaled = (duration_ns >> (Self::FIRST_LOG2 - 2)).max(1);
        let log2 = scaled.ilog2();
        if log2 < 2 {
            return 0;
        }
        // Two bits below the leading one tell the quarter of the power of two.
        let quarter = (scaled >> (log2 - 2)) & 3;
        let index = 1 + u64::from(log2 - 2) * 4 + quarter;
        usize::try_from(index).map_or(Self::BUCKETS - 1, |index| index.min(Self::BUCKETS - 1))
    }

    /// Where bucket `index` ends; `None` for the last one, which has no end.
    #[must_use]
    pub fn bucket_end(index: usize) -> Option<Duration> {
        if index + 1 >= Self::BUCKETS {
            return None;
        }
        let (power, quarter) = (index / 4, index as u64 % 4);
        Some(Duration::from_nanos((4 + quarter) << (Self::FIRST_LOG2 as usize - 2 + power)))
    }

    /// The counts by bucket.
    pub fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.buckets.iter().map(Counter::get)
    }

    /// The sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }
}

/// The kinds of requests that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Zeroings.
    WriteZeroes,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes];

    /// The kind of an operation.
    #[must_use]
    pub const fn of(op: &Operation) -> Self {
        match op {
            Operation::Read { .. } => Self::Read,
            Operation::Write { .. } | Operation::CompareAndWrite { .. } => Self::Write,
            Operation::Flush => Self::Flush,
            Operation::Discard { .. } => Self::Discard,
            Operation::WriteZeroes { .. } => Self::WriteZeroes,
        }
    }

    /// Its name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
        }
    }
}

/// What is counted of one kind of request.
#[derive(Debug, Default)]
pub struct KindStats {
    /// Requests completed, with or without success.
    pub requests: Counter,
    /// Bytes moved, discarded or zeroed by the successful ones.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Time in the backend: from the hand-over to the engine until its completion was reaped.
    pub backend: Histogram,
}

/// One round of a worker's loop. Times are of the worker's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    /// Requests given back to the driver.
    pub(crate) settled: u64,
    /// Requests handed to the engine.
    pub(crate) taken: u64,
    /// How long those may have been in the ring.
    pub(crate) waited_ns: u64,
    pub(crate) interrupt: bool,
}

impl Round {
    /// The part that one of several disks had in it.
    pub(crate) fn part(&self, taken: u64, settled: u64) -> Self {
        Self { taken, settled, ..*self }
    }
}

/// What one queue has done.
#[derive(Debug, Default)]
pub struct QueueStats {
    kinds: [KindStats; Kind::ALL.len()],
    /// Time that requests lay in the ring while the worker was awake and busy with others: from the
    /// start of the round that did not find them to the start of the one that took them. A ring holds
    /// no times, so this is the most it can have been. It is zero for what came while the worker slept:
    /// how long the host took to wake it cannot be seen from here.
    pub wait: Histogram,
    /// Requests that the engine holds now.
    pub in_flight: Counter,
    /// Time from the start of a round of the worker's loop until what had completed by then was
    /// visible to the driver, per request.
    pub completion: Histogram,
    /// Rounds of the worker's loop, each with at most one system call for I/O.
    pub rounds: Counter,
    /// Interrupts sent.
    pub interrupts: Counter,
    /// How often the worker gave its CPU away (`sched_yield`) while it polled.
    pub yields: Counter,
    /// How long the worker would poll now before it sleeps, in nanoseconds.
    pub poll_ns: Counter,
    /// Requests answered without the disk: asked for its name, or malformed.
    pub answered: Counter,
}

impl QueueStats {
    /// The figures of one kind of request.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &KindStats {
        let [read, write, flush, discard, write_zeroes] = &self.kinds;
        match kind {
            Kind::Read => read,
            Kind::Write => write,
            Kind::Flush => flush,
            Kind::Discard => discard,
            Kind::WriteZeroes => write_zeroes,
        }
    }

    /// So many requests of a kind left the backend after the same time.
    fn completed(&self, kind: Kind, run: Run) {
        let stats = self.kind(kind);
        stats.requests.add(run.requests);
        stats.bytes.add(run.bytes);
        stats.errors.add(run.errors);
        stats.backend.record(run.backend_ns, run.requests);
    }

    /// A request left the backend; `bytes` is `None` if it failed.
    pub(crate) fn completed_one(&self, kind: Kind, bytes: Option<u64>, backend_ns: u64) {
        let mut tally = Tally::new(self);
        tally.completed(kind, bytes, backend_ns);
    }

    /// A request was answered without the disk.
    pub(crate) fn answered(&self) {
        self.answered.add(1);
    }

    /// A round is over.
    pub(crate) fn round(&self, round: &Round) {
        self.rounds.add(1);
        self.interrupts.add(u64::from(round.interrupt));
        if round.settled > 0 {
            let took_ns = round.end_ns.saturating_sub(round.start_ns);
            self.completion.record(took_ns, round.settled);
        }
        if round.taken > 0 {
            self.wait.record(round.waited_ns, round.taken);
        }
    }

    /// The worker gave its CPU away.
    pub(crate) fn yielded(&self) {
        self.yields.add(1);
    }

    /// The worker would poll for so long now.
    pub(crate) fn polls_for(&self, ns: u64) {
        self.poll_ns.set(ns);
    }

    /// The engine holds this many requests.
    pub(crate) fn in_flight(&self, requests: u16) {
        self.in_flight.set(requests.into());
    }
}

/// Requests that leave the backend in one round. Those that entered it together are counted together.
pub(crate) struct Tally<'a> {
    stats: &'a QueueStats,
    kind: Kind,
    run: Run,
}

#[derive(Clone, Copy, Debug, Default)]
struct Run {
    requests: u64,
    bytes: u64,
    errors: u64,
    backend_ns: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(stats: &'a QueueStats) -> Self {
        Self { stats, kind: Kind::Read, run: Run::default() }
    }

    /// A request left the backend; `bytes` is `None` if it failed.
    pub(crate) fn completed(&mut self, kind: Kind, bytes: Option<u64>, backend_ns: u64) {
        if kind != self.kind || backend_ns != self.run.backend_ns {
            self.count();
            self.kind = kind;
            self.run = Run { backend_ns, ..Run::default() };
        }
        self.run.requests += 1;
        self.run.bytes += bytes.unwrap_or(0);
        self.run.errors += u64::from(bytes.is_none());
    }

    fn count(&self) {
        if self.run.requests > 0 {
            self.stats.completed(self.kind, self.run);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_where_the_next_begins() {
        for index in 0..Histogram::BUCKETS - 1 {
            let end = u64::try_from(Histogram::bucket_end(index).unwrap().as_nanos()).unwrap();
            assert_eq!(Histogram::bucket(end - 1), index, "below {end} ns");
            assert_eq!(Histogram::bucket(end), index + 1, "at {end} ns");
        }
        assert_eq!(Histogram::bucket(0), 0);
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
        assert_eq!(Histogram::bucket_end(Histogram::BUCKETS - 1), None);
    }

    #[test]
    fn the_range_reaches_from_microseconds_to_a_minute() {
        assert_eq!(Histogram::bucket_end(0), Some(Duration::from_nanos(256)));
        let last = Histogram::bucket_end(Histogram::BUCKETS - 2).unwrap();
        assert!(last > Duration::from_secs(17), "{last:?}");
    }

    #[test]
    fn a_round_is_counted_once_per_request() {
        let stats = QueueStats::default();
        let round = Round { start_ns: 5000, end_ns: 6000, ..Round::default() };
        stats.round(&round);
        assert_eq!((stats.wait.counts().sum(), stats.completion.counts().sum()), (0_u64, 0_u64));
        stats.round(&Round { taken: 3, waited_ns: 700, settled: 2, interrupt: true, ..round });
        assert_eq!((stats.wait.counts().sum(), stats.wait.sum().as_nanos()), (3_u64, 2100));
        assert_eq!(stats.completion.sum(), Duration::from_nanos(2000));
        assert_eq!((stats.rounds.get(), stats.interrupts.get()), (2, 1));
        stats.in_flight(7);
        assert_eq!(stats.in_flight.get(), 7);
    }

    #[test]
    fn failed_requests_count_no_bytes() {
        let stats = QueueStats::default();
        let mut tally = Tally::new(&stats);
        tally.completed(Kind::Write, Some(4096), 1000);
        tally.completed(Kind::Write, None, 1000);
        tally.completed(Kind::Write, Some(512), 2000);
        drop(tally);
        let write = stats.kind(Kind::Write);
        assert_eq!((write.requests.get(), write.bytes.get(), write.errors.get()), (3, 4608, 1));
        assert_eq!(write.backend.counts().sum::<u64>(), 3);
        assert_eq!(stats.kind(Kind::Read).requests.get(), 0);
    }
}
