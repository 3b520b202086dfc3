//! Size and timing of discard chunks.
//!
//! While a file system punches a hole it waits for the transfers to the file and blocks new ones; a
//! device occupies its queue. So discards are chunked, one chunk per engine at a time. A chunk
//! should take the host two milliseconds, or as long as a transfer if that is longer: a transfer
//! that hits one then takes at most twice its time. A [`Cooldown`] separates chunks.

use std::time::{Duration, Instant};

use super::cooldown::{Cooldown, SmallDiscard};
use super::io_load::LoadSample;

/// Intended duration of a chunk.
const TARGET: Duration = Duration::from_millis(2);
/// Maximum duration of a transfer that extends the target.
const MAX_TRANSFER: Duration = Duration::from_millis(50);
/// Guests time discards out, Linux on SCSI disks after 30 s. Discards that were delayed for this
/// long get the minimum cooldown only.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// Sizes of chunks in bytes.
const FIRST: u64 = 4 << 20;
const MIN: u64 = 1 << 20;
const MAX: u64 = 1 << 30;

/// The chunks of one engine.
#[derive(Debug)]
pub(crate) struct ChunkPacing {
    granularity: u64,
    /// Size of the next chunk in bytes.
    size: u64,
    /// When the outstanding chunk was submitted.
    submitted: Option<Instant>,
    /// Transfers completed when the next or outstanding chunk was found ready.
    completed: u64,
    cooldown: Option<Cooldown>,
    /// The load when the last cooldown ended.
    load: LoadSample,
    /// Mean duration of a transfer during the last cooldown.
    transfer: Duration,
    /// Usual duration of discards smaller than a chunk: a moving average.
    small: Option<Duration>,
}

impl ChunkPacing {
    /// Chunks are multiples of `granularity` bytes.
    pub(crate) fn new(granularity: u32) -> Self {
        Self {
            granularity: u64::from(granularity.max(1)),
            size: FIRST,
            submitted: None,
            completed: 0,
            cooldown: None,
            load: LoadSample::default(),
            transfer: Duration::ZERO,
            small: None,
        }
    }

    /// Size of the next chunk of a range of `len` bytes that starts at a granule: all of it if it
    /// is not much larger than a chunk.
    pub(crate) fn chunk_of(&self, len: u64) -> u64 {
        let size = self.size.next_multiple_of(self.granularity);
        if len <= size.saturating_add(size / 4) { len } else { size }
    }

    /// Whether a chunk is outstanding.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.submitted.is_some()
    }

    /// Whether a chunk may be submitted, of discards delayed for `delayed` so far. `sample` is
    /// called only if the load matters.
    pub(crate) fn is_ready(
        &mut self,
        now: Instant,
        delayed: Duration,
        sample: impl FnOnce() -> LoadSample,
    ) -> bool {
        let Some(cooldown) = &mut self.cooldown else {
            let is_ready = !self.is_outstanding();
            if is_ready {
                self.completed = sample().completed;
            }
            return is_ready;
        };
        if now < cooldown.due() {
            return false;
        }
        let load = sample();
        if !cooldown.is_over(now, load) && delayed < MAX_DELAY {
            return false;
        }
        let transfer = cooldown.transfer_duration(now, load).unwrap_or_default();
        self.transfer = transfer.min(MAX_TRANSFER);
        (self.cooldown, self.load, self.completed) = (None, load, load.completed);
        true
    }

    /// When to call [`ChunkPacing::is_ready`] again; `None` if a chunk has to complete first.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.cooldown.as_ref().map(Cooldown::due)
    }

    /// A chunk is submitted.
    pub(crate) fn submit(&mut self, now: Instant) {
        self.submitted = Some(now);
    }

    /// The outstanding chunk is complete; `bytes` were discarded.
    pub(crate) fn complete(&mut self, now: Instant, bytes: u64, load: LoadSample) {
        let Some(submitted) = self.submitted.take() else { return };
        let duration = now.saturating_duration_since(submitted);
        if load.in_flight > 0 || load.completed != self.load.completed {
            let hit = load.in_flight.max(self.load.in_flight);
            let completed = self.completed;
            let small = (bytes < MIN).then(|| SmallDiscard {
                usual: self.small(duration),
                submitted,
                completed,
            });
            self.cooldown = Some(Cooldown::after(duration, small, hit, now, load));
        }
        // The file system first waits for transfers in progress, then they wait for it.
        let target = TARGET + 2 * self.transfer;
        // By a factor of two at most, and larger only after a chunk of full size.
        if duration > target {
            self.size = (self.size / 2).max(MIN);
        } else if duration < target / 2 && bytes >= self.size {
            self.size = (self.size * 2).min(MAX);
        }
    }
}

impl ChunkPacing {
    /// The usual duration of small discards, with that of one more. A single slow one counts
    /// little.
    fn small(&mut self, duration: Duration) -> Duration {
        const WEIGHT: u32 = 8;
        let before = self.small.unwrap_or(duration);
        let average = (before * (WEIGHT - 1) + duration.min(4 * before)) / WEIGHT;
        *self.small.insert(average)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const IDLE: LoadSample = LoadSample { completed: 0, in_flight: 0, completed_at_chunk: 0 };

    fn is_ready(pacing: &mut ChunkPacing, now: Instant, load: LoadSample) -> bool {
        pacing.is_ready(now, Duration::ZERO, || load)
    }

    #[test]
    fn chunks_grow_on_a_fast_host_and_shrink_on_a_slow_one() {
        let mut pacing = ChunkPacing::new(4096);
        let mut now = Instant::now();
        let mut chunk = |pacing: &mut ChunkPacing, duration: Duration| {
            let bytes = pacing.chunk_of(u64::MAX);
            pacing.submit(now);
            now += duration;
            pacing.complete(now, bytes, IDLE);
            bytes >> 20
        };
        let fast: Vec<_> = (0..10).map(|_| chunk(&mut pacing, MS / 10)).collect();
        assert_eq!(fast, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        let slow: Vec<_> = (0..12).map(|_| chunk(&mut pacing, 5 * MS)).collect();
        assert_eq!(slow, [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(chunk(&mut pacing, 3 * MS / 2), 1);
        assert_eq!(chunk(&mut pacing, MS / 100), 1);
        assert_eq!(chunk(&mut pacing, MS), 2);
    }

    /// Size in MiB of the chunk after a cooldown of 250 ms in which `completed` transfers completed
    /// one after the other, and a chunk of `duration_us`.
    fn chunk_after(completed: u64, duration_us: u64) -> u64 {
        let (mut pacing, now) = (ChunkPacing::new(4096), Instant::now());
        pacing.submit(now);
        pacing.complete(now, MIN, LoadSample { in_flight: 1, ..IDLE });
        let rested = now + 250 * MS;
        assert!(is_ready(&mut pacing, rested, LoadSample { completed, ..IDLE }));
        pacing.submit(rested);
        pacing.complete(
            rested + Duration::from_micros(duration_us),
            pacing.chunk_of(u64::MAX),
            IDLE,
        );
        pacing.chunk_of(u64::MAX) >> 20
    }

    #[test]
    fn a_chunk_takes_two_milliseconds_plus_two_transfers_at_most() {
        let chunks = |completed, us: [u64; 4]| us.map(|us| chunk_after(completed, us));
        assert_eq!(chunks(0, [2_001, 2_000, 1_000, 999]), [2, 4, 4, 8]);
        assert_eq!(chunks(25, [22_001, 22_000, 11_000, 10_999]), [2, 4, 4, 8], "10 ms each");
        assert_eq!(chunks(2, [102_001, 102_000, 51_000, 50_999]), [2, 4, 4, 8], "50 ms at most");
    }

    /// The cooldown after a chunk, for the load when it was submitted and when it completed.
    fn cooldown_after(before: LoadSample, end: LoadSample) -> Option<Cooldown> {
        let (mut pacing, now) = (ChunkPacing::new(4096), Instant::now());
        pacing.submit(now);
        pacing.complete(now, MIN, LoadSample { in_flight: 1, ..IDLE });
        assert!(is_ready(&mut pacing, now + 250 * MS, before));
        pacing.submit(now + 250 * MS);
        pacing.complete(now + 251 * MS, MIN, end);
        pacing.cooldown
    }

    #[test]
    fn transfers_before_during_and_after_a_chunk_have_hit_it() {
        let load = |completed, in_flight| LoadSample {
            completed,
            in_flight,
            completed_at_chunk: completed,
        };
        assert!(cooldown_after(load(5, 0), load(5, 0)).is_none(), "no transfers");
        let wanted = |before, end: LoadSample| {
            let mut cooldown = cooldown_after(before, end)?;
            let due = cooldown.due();
            let after = |more| LoadSample { completed: end.completed + more, ..end };
            (1..).find(|&more| cooldown.is_over(due, after(more)))
        };
        assert_eq!(wanted(load(5, 1), load(5, 1)), Some(256));
        assert_eq!(wanted(load(5, 0), load(6, 0)), Some(256));
        assert_eq!(wanted(load(5, 3), load(7, 1)), Some(768));
        assert_eq!(wanted(load(5, 1), load(5, 3)), Some(768));
    }

    #[test]
    fn chunks_are_separated_while_transfers_go_on() {
        let mut pacing = ChunkPacing::new(4096);
        let now = Instant::now();
        assert!(is_ready(&mut pacing, now, IDLE));
        pacing.submit(now);
        assert!(!is_ready(&mut pacing, now + 10 * MS, IDLE), "a chunk is outstanding");
        let busy = LoadSample { completed: 10, in_flight: 1, completed_at_chunk: 10 };
        pacing.complete(now + 2 * MS, MIN, busy);
        assert_eq!(pacing.due(), Some(now + 10 * MS));
        assert!(!is_ready(&mut pacing, now + 9 * MS, LoadSample { completed: 1000, ..busy }));
        assert!(!is_ready(&mut pacing, now + 10 * MS, LoadSample { completed: 20, ..busy }));
        assert_eq!(pacing.due(), Some(now + 20 * MS));
        assert!(is_ready(&mut pacing, now + 20 * MS, LoadSample { completed: 266, ..busy }));
        pacing.submit(now + 20 * MS);
        let idle = LoadSample { completed: 266, in_flight: 0, completed_at_chunk: 266 };
        pacing.complete(now + 21 * MS, MIN, idle);
        assert!(is_ready(&mut pacing, now + 21 * MS, idle), "no transfers");
    }

    #[test]
    fn discards_delayed_for_ten_seconds_get_the_minimum_cooldown() {
        let mut pacing = ChunkPacing::new(4096);
        let now = Instant::now();
        let busy = LoadSample { completed: 10, in_flight: 1, completed_at_chunk: 10 };
        pacing.submit(now);
        pacing.complete(now + MS, MIN, busy);
        let moved = LoadSample { completed: 20, ..busy };
        let ten_seconds = Duration::from_secs(10);
        assert!(!pacing.is_ready(now + 4 * MS, ten_seconds, || moved));
        assert!(!pacing.is_ready(now + 5 * MS, ten_seconds - MS, || moved));
        assert!(pacing.is_ready(now + 15 * MS, ten_seconds, || moved));
    }

    #[test]
    fn a_chunk_is_of_whole_granules_and_leaves_no_small_rest() {
        let pacing = ChunkPacing::new(3 << 20);
        assert_eq!(pacing.chunk_of(100 << 20), 6 << 20);
        assert_eq!(pacing.chunk_of(15 << 19), 15 << 19);
        assert_eq!(pacing.chunk_of((15 << 19) + 512), 6 << 20);
        assert_eq!(pacing.chunk_of(4096), 4096);
        assert_eq!(
            ChunkPacing::new(0).chunk_of(100 << 20),
            4 << 20,
            "a host without a granularity"
        );
    }

    #[test]
    fn a_single_slow_discard_hardly_changes_the_usual_duration() {
        let mut pacing = ChunkPacing::new(4096);
        for _ in 0..10 {
            assert_eq!(pacing.small(MS), MS);
        }
        let slow = pacing.small(1000 * MS);
        assert_eq!(slow, MS * 11 / 8);
        let last = (0..20).map(|_| pacing.small(10 * MS)).last().unwrap();
        assert!(last > 8 * MS, "many are usual: {last:?}");
    }
}
