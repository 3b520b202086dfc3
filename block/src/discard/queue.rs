//! The discards of one engine that wait for their next chunk, in order.
//!
//! Pure. All times are of the engine's clock.

use std::collections::VecDeque;
use std::time::Instant;

use super::chunk_size::ChunkPacing;
use super::io_load::IoLoad;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct DiscardQueue {
    pacing: ChunkPacing,
    waiting: VecDeque<u16>,
    /// Start of the current busy period: since then there were always discards waiting,
    /// outstanding, or announced by [`Operation::Discard`](crate::Operation::Discard)'s
    /// `more_follows`.
    busy_since: Option<Instant>,
    /// The command of the last chunk has further ranges.
    more_follows: bool,
}

impl DiscardQueue {
    /// A queue for a host with granules of `granularity` bytes.
    pub(crate) fn new(granularity: u32) -> Self {
        Self {
            pacing: ChunkPacing::new(granularity),
            waiting: VecDeque::new(),
            busy_since: None,
            more_follows: false,
        }
    }

    /// Adds a request that has a chunk to discard.
    pub(crate) fn push(&mut self, tag: u16) {
        self.waiting.push_back(tag);
    }

    /// Removes a request; `false` if it does not wait.
    pub(crate) fn remove(&mut self, tag: u16) -> bool {
        let index = self.waiting.iter().position(|waiting| *waiting == tag);
        index.is_some_and(|index| self.waiting.remove(index).is_some())
    }

    /// Number of waiting requests.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Removes the next request if its chunk may be submitted; it is outstanding then. `now` is
    /// called only if a request waits.
    pub(crate) fn pop(&mut self, now: impl FnOnce() -> Instant, load: &IoLoad) -> Option<u16> {
        if self.waiting.is_empty() {
            return None;
        }
        let now = now();
        let delayed = now.saturating_duration_since(*self.busy_since.get_or_insert(now));
        if !self.pacing.is_ready(now, delayed, || load.sample()) {
            return None;
        }
        self.pacing.submit(now);
        self.waiting.pop_front()
    }

    /// Size of the next chunk of a range of `len` bytes.
    pub(crate) fn chunk_of(&self, len: u64) -> u64 {
        self.pacing.chunk_of(len)
    }

    /// The outstanding chunk is complete; `bytes` were discarded. `more_follows` as in its
    /// operation.
    pub(crate) fn complete_chunk(
        &mut self,
        now: Instant,
        bytes: u64,
        more_follows: bool,
        load: &IoLoad,
    ) {
        self.more_follows = more_follows;
        self.pacing.complete(now, bytes, load.complete_chunk());
    }

    /// Ends the busy period if nothing waits, is outstanding or follows. To be called when the
    /// request of a completed chunk has either completed or joined the queue again.
    pub(crate) fn end_busy_period_if_idle(&mut self) {
        if self.waiting.is_empty() && !self.pacing.is_outstanding() && !self.more_follows {
            self.busy_since = None;
        }
    }

    /// When to call [`DiscardQueue::pop`] again; `None` if nothing waits or a chunk has to complete
    /// first.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.waiting.is_empty() { None } else { self.pacing.due() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::io_load::TransferCount;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The discards of one engine beside the transfers of another, of which one is always in
    /// flight. A chunk takes a millisecond.
    struct Disk {
        load: IoLoad,
        queue: DiscardQueue,
        other: Arc<TransferCount>,
        now: Instant,
    }

    impl Disk {
        fn new() -> Self {
            let load = IoLoad::default();
            let other = load.register();
            other.submit();
            Self { load, queue: DiscardQueue::new(1), other, now: Instant::now() }
        }

        fn pop(&mut self) -> Option<u16> {
            self.queue.pop(|| self.now, &self.load)
        }

        fn complete_chunk(&mut self) {
            self.now += MS;
            self.queue.complete_chunk(self.now, 1 << 20, false, &self.load);
        }

        /// Waits until a chunk may be submitted, while one transfer completes before each check.
        /// Returns how long that took.
        fn wait(&mut self) -> Duration {
            let start = self.now;
            let mut checks = 0;
            while self.pop().is_none() {
                self.now = self.queue.due().unwrap();
                self.other.complete();
                self.other.submit();
                checks += 1;
                assert!(checks < 1000, "the cooldown does not end");
            }
            self.now - start
        }

        /// Discards for `time`, with another discard always waiting. Returns the shortest and the
        /// longest cooldown.
        fn discard_for(&mut self, time: Duration) -> (Duration, Duration) {
            let (start, mut cooldowns) = (self.now, (Duration::MAX, Duration::ZERO));
            while self.now - start < time {
                self.queue.push(1);
                let cooldown = self.wait();
                cooldowns = (cooldowns.0.min(cooldown), cooldowns.1.max(cooldown));
                self.complete_chunk();
            }
            cooldowns
        }
    }

    #[test]
    fn after_a_busy_period_of_ten_seconds_cooldowns_are_minimal() {
        let mut disk = Disk::new();
        disk.queue.push(1);
        assert_eq!(disk.wait(), Duration::ZERO, "no chunk before");
        disk.complete_chunk();
        let is_long =
            |cooldowns: (Duration, Duration)| 250 * MS <= cooldowns.0 && cooldowns.1 <= 260 * MS;
        assert!(is_long(disk.discard_for(9_700 * MS)));
        disk.discard_for(600 * MS);
        assert_eq!(disk.discard_for(1000 * MS), (4 * MS, 4 * MS));
        disk.queue.end_busy_period_if_idle();
        assert!(is_long(disk.discard_for(9_700 * MS)), "the queue was empty for a moment");
    }

    #[test]
    fn an_outstanding_chunk_does_not_end_the_busy_period() {
        let mut disk = Disk::new();
        disk.discard_for(11_000 * MS);
        disk.queue.push(2);
        disk.wait();
        disk.queue.end_busy_period_if_idle();
        assert_eq!(disk.pop(), None, "a chunk is outstanding and nothing waits");
        disk.complete_chunk();
        disk.queue.push(3);
        assert_eq!(disk.wait(), 4 * MS);
    }

    #[test]
    fn a_chunk_is_of_whole_granules() {
        assert_eq!(DiscardQueue::new(3 << 20).chunk_of(100 << 20), 6 << 20);
    }

    #[test]
    fn requests_are_served_in_order_one_chunk_at_a_time() {
        let mut disk = Disk::new();
        (7..10).for_each(|tag| disk.queue.push(tag));
        assert_eq!((disk.pop(), disk.pop()), (Some(7), None));
        assert_eq!(disk.queue.due(), None, "the chunk has to complete first");
        disk.complete_chunk();
        assert_eq!(disk.queue.due(), Some(disk.now + 4 * MS));
        assert!(disk.queue.remove(8) && !disk.queue.remove(8));
        disk.now += 250 * MS;
        assert_eq!((disk.pop(), disk.queue.len()), (Some(9), 0));
        disk.complete_chunk();
        assert_eq!(disk.queue.due(), None, "nothing waits");
    }

    #[test]
    fn a_chunk_extends_the_cooldown_of_other_engines() {
        let mut disk = Disk::new();
        let mut second = DiscardQueue::new(1);
        let now = disk.now;
        let pops = |queue: &mut DiscardQueue, now| queue.pop(|| now, &disk.load).is_some();
        let transfer = |count| (0..count).for_each(|_| disk.other.complete());
        disk.queue.push(1);
        second.push(1);
        assert!(pops(&mut disk.queue, now) && pops(&mut second, now));
        disk.queue.complete_chunk(now + MS, 1 << 20, false, &disk.load);
        disk.queue.push(1);
        transfer(200);
        second.complete_chunk(now + 4 * MS, 1 << 20, false, &disk.load);
        transfer(255);
        assert!(!pops(&mut disk.queue, now + 10 * MS));
        transfer(1);
        assert!(pops(&mut disk.queue, now + 20 * MS));
    }
}
