//! Statistics of one queue of a disk: counters and latencies.
//!
//! Written by the queue's worker only. A reader sees each value whole, but not all values of one
//! moment. The latency of a request has three parts, without gap or overlap: `wait`, `backend` and
//! `completion`.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ::block::Operation;

use super::histogram::{Counter, Histogram};

/// Kinds of operations with separate statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OperationKind {
    /// Reads.
    Read,
    /// Writes, including compare-and-write.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Zeroings.
    WriteZeroes,
}

impl OperationKind {
    /// All kinds, in order of their values.
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

/// Interval of scans of the requests in flight, in nanoseconds.
pub(super) const SCAN_INTERVAL_NS: u64 = 1_000_000_000;

/// Nanoseconds since the first call in this process.
fn process_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Statistics of one kind of operation.
#[derive(Debug, Default)]
pub struct KindStats {
    /// Requests completed, including failed ones.
    pub requests: Counter,
    /// Bytes moved, discarded or zeroed by successful requests.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Time from the push to the engine until the completion was reaped.
    pub backend: Histogram,
}

/// One round of a worker. Times are of the worker's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    /// Requests returned to the driver.
    pub(super) completed: u64,
    /// Requests pushed to the engines.
    pub(super) started: u64,
    /// Maximum time that the started requests were in the ring.
    pub(super) waited_ns: u64,
    pub(super) interrupt: bool,
}

impl Round {
    /// The share of one of several disks.
    pub(crate) fn share(&self, started: u64, completed: u64) -> Self {
        Self { started, completed, ..*self }
    }
}

/// Statistics of one queue.
#[derive(Debug, Default)]
pub struct QueueStats {
    kinds: [KindStats; OperationKind::ALL.len()],
    /// Time that requests were in the ring while the worker was awake: from the start of the round
    /// that did not see them to the start of the round that took them. A ring has no timestamps, so
    /// this is an upper bound. Zero for requests that arrived while the worker slept: the time to
    /// wake it is not measurable here.
    pub wait: Histogram,
    /// Requests in the engines now.
    pub in_flight: Counter,
    /// Time from the start of a round until its completions were visible to the driver, per
    /// request.
    pub completion: Histogram,
    /// Rounds of the worker, each with at most one system call for I/O.
    pub rounds: Counter,
    /// Interrupts sent.
    pub interrupts: Counter,
    /// Yields of the CPU while polling.
    pub yields: Counter,
    /// Current polling budget, in nanoseconds.
    pub poll_ns: Counter,
    /// Requests answered without the engines, such as GET_ID and malformed requests.
    pub answered: Counter,
    /// Time of the last scan of the requests in flight, in nanoseconds of [`process_ns`].
    scanned_ns: Counter,
    /// When the oldest request of the last scan was pushed; zero if there was none.
    oldest_ns: Counter,
}

impl QueueStats {
    /// Statistics of one kind of operation.
    #[must_use]
    pub fn kind(&self, kind: OperationKind) -> &KindStats {
        let [read, write, flush, discard, write_zeroes] = &self.kinds;
        match kind {
            OperationKind::Read => read,
            OperationKind::Write => write,
            OperationKind::Flush => flush,
            OperationKind::Discard => discard,
            OperationKind::WriteZeroes => write_zeroes,
        }
    }

    /// Requests completed, including failed ones.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.requests.get()).sum()
    }

    /// Requests that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.errors.get()).sum()
    }

    /// Age of the oldest request in flight, as of a scan in the last two seconds. `None` if there
    /// is no request, or the worker has slept since: then no request completes, and the age is the
    /// time since [`QueueStats::completed`] changed.
    #[must_use]
    pub fn oldest_age(&self) -> Option<Duration> {
        let (now, oldest) = (process_ns(), self.oldest_ns.get());
        let is_recent = now.saturating_sub(self.scanned_ns.get()) < 2 * SCAN_INTERVAL_NS;
        let exists = oldest > 0 && self.in_flight.get() > 0;
        (is_recent && exists).then(|| Duration::from_nanos(now.saturating_sub(oldest)))
    }

    /// Records a scan of the requests in flight. `age_ns` is the age of the oldest one.
    pub(crate) fn set_oldest(&self, age_ns: Option<u64>) {
        let now = process_ns();
        self.oldest_ns.set(age_ns.map_or(0, |age_ns| now.saturating_sub(age_ns).max(1)));
        self.scanned_ns.set(now);
    }

    fn count_batch(&self, kind: OperationKind, batch: Batch) {
        let stats = self.kind(kind);
        stats.requests.add(batch.requests);
        stats.bytes.add(batch.bytes);
        stats.errors.add(batch.errors);
        stats.backend.record(batch.backend_ns, batch.requests);
    }

    /// Counts a completion of the engine; `bytes` is `None` if the operation failed.
    pub(crate) fn count_completion(
        &self,
        kind: OperationKind,
        bytes: Option<u64>,
        backend_ns: u64,
    ) {
        Tally::new(self).add(kind, bytes, backend_ns);
    }

    /// Counts a request answered without the engines.
    pub(crate) fn count_answered(&self) {
        self.answered.add(1);
    }

    /// Counts a round.
    pub(crate) fn count_round(&self, round: &Round) {
        self.rounds.add(1);
        self.interrupts.add(u64::from(round.interrupt));
        if round.completed > 0 {
            let took_ns = round.end_ns.saturating_sub(round.start_ns);
            self.completion.record(took_ns, round.completed);
        }
        if round.started > 0 {
            self.wait.record(round.waited_ns, round.started);
        }
    }

    /// Counts a yield of the CPU.
    pub(super) fn count_yield(&self) {
        self.yields.add(1);
    }

    pub(super) fn set_poll_budget(&self, ns: u64) {
        self.poll_ns.set(ns);
    }

    pub(crate) fn set_in_flight(&self, requests: u16) {
        self.in_flight.set(requests.into());
    }
}

/// Completions of one round. Requests of one kind that were pushed together are counted together.
pub(super) struct Tally<'a> {
    stats: &'a QueueStats,
    kind: OperationKind,
    batch: Batch,
}

/// Completions of one kind with the same latency.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    requests: u64,
    bytes: u64,
    errors: u64,
    backend_ns: u64,
}

impl<'a> Tally<'a> {
    pub(super) fn new(stats: &'a QueueStats) -> Self {
        Self { stats, kind: OperationKind::Read, batch: Batch::default() }
    }

    /// Adds a completion of the engine; `bytes` is `None` if the operation failed.
    pub(super) fn add(&mut self, kind: OperationKind, bytes: Option<u64>, backend_ns: u64) {
        if kind != self.kind || backend_ns != self.batch.backend_ns {
            self.count();
            self.kind = kind;
            self.batch = Batch { backend_ns, ..Batch::default() };
        }
        self.batch.requests += 1;
        self.batch.bytes += bytes.unwrap_or(0);
        self.batch.errors += u64::from(bytes.is_none());
    }

    fn count(&self) {
        if self.batch.requests > 0 {
            self.stats.count_batch(self.kind, self.batch);
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
    fn a_round_is_counted_once_per_request() {
        let stats = QueueStats::default();
        let round = Round { start_ns: 5000, end_ns: 6000, ..Round::default() };
        stats.count_round(&round);
        assert_eq!((stats.wait.counts().sum(), stats.completion.counts().sum()), (0_u64, 0_u64));
        let busy = Round { started: 3, waited_ns: 700, completed: 2, interrupt: true, ..round };
        stats.count_round(&busy);
        assert_eq!((stats.wait.counts().sum(), stats.wait.sum().as_nanos()), (3_u64, 2100));
        assert_eq!(stats.completion.sum(), Duration::from_nanos(2000));
        assert_eq!((stats.rounds.get(), stats.interrupts.get()), (2, 1));
        stats.set_in_flight(7);
        assert_eq!(stats.in_flight.get(), 7);
    }

    #[test]
    fn failed_requests_count_no_bytes() {
        let stats = QueueStats::default();
        let mut tally = Tally::new(&stats);
        tally.add(OperationKind::Write, Some(4096), 1000);
        tally.add(OperationKind::Write, None, 1000);
        tally.add(OperationKind::Write, Some(512), 2000);
        drop(tally);
        let write = stats.kind(OperationKind::Write);
        assert_eq!((write.requests.get(), write.bytes.get(), write.errors.get()), (3, 4608, 1));
        assert_eq!(write.backend.counts().sum::<u64>(), 3);
        assert_eq!(stats.kind(OperationKind::Read).requests.get(), 0);
    }
}
