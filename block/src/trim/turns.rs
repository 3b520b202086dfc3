//! The discards of one engine: who waits for neighbours, whose turn it is, and who shares another's fate.
//!
//! Pure but for the account. The times are of the engine's clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::activity::Transfers;
use super::{Activity, Gather, Granules, Pace, Run};
use crate::{ByteRange, DiscardLimits};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Nothing where the host discards nothing.
    gather: Option<Gather>,
    pace: Pace,
    /// Those that are to discard a chunk, in their order.
    waiting: VecDeque<u16>,
    /// Pairs of a request and the one that discards for it too.
    riders: Vec<(u16, u16)>,
    /// Since when there is no moment without one that waits or is under way, or without one more of its command to come.
    since: Option<Instant>,
    /// Whether more of the same command is to come after the last one that was under way.
    more_to_come: bool,
    /// What this engine transfers.
    transfers: Arc<Transfers>,
}

impl Turns {
    pub(crate) fn new(limits: Option<DiscardLimits>, activity: &Activity) -> Self {
        Self {
            gather: limits.map(|limits| Gather::new(Granules::new(limits))),
            pace: Pace::new(limits.map_or(1, |limits| limits.granularity)),
            waiting: VecDeque::new(),
            riders: Vec::new(),
            since: None,
            more_to_come: false,
            transfers: activity.join(),
        }
    }

    /// A read or write goes to the host.
    #[inline]
    pub(crate) fn transfer_begins(&self) {
        self.transfers.begin();
    }

    /// The host is done with one, or it ends otherwise.
    #[inline]
    pub(crate) fn transfer_ends(&self) {
        self.transfers.end();
    }

    /// Whether each transfer that began has ended.
    pub(crate) fn transfers_none(&self) -> bool {
        self.transfers.in_flight() == 0
    }

    /// Sets a discard aside that may gain by waiting for its neighbours; `false` if it would not.
    pub(crate) fn gather(&mut self, tag: u16, range: ByteRange, now: Instant) -> bool {
        self.gather.as_mut().is_some_and(|gather| gather.hold(tag, range, now))
    }

    /// How many wait, for their neighbours or for their turn.
    pub(crate) fn len(&self) -> usize {
        self.gather.as_ref().map_or(0, Gather::len) + self.waiting.len()
    }

    /// Whether a request waits for its neighbours.
    pub(crate) fn gathers(&self, tag: u16) -> bool {
        self.gather.as_ref().is_some_and(|gather| gather.holds(tag))
    }

    /// Takes a request out that waits, for its neighbours or for its turn; `false` if it does not.
    pub(crate) fn cancel(&mut self, tag: u16) -> bool {
        if self.gather.as_mut().is_some_and(|gather| gather.drop_one(tag)) {
            return true;
        }
        let place = self.waiting.iter().position(|waiting| *waiting == tag);
        place.is_some_and(|place| self.waiting.remove(place).is_some())
    }

    /// Whether discards wait for their neighbours, and have waited long enough.
    pub(crate) fn is_gathered(&self, now: Instant) -> bool {
        self.gather.as_ref().and_then(Gather::due).is_some_and(|due| due <= now)
    }

    /// Everything that waited for its neighbours. The first request of a run discards for the others.
    pub(crate) fn release(&mut self) -> Vec<Run> {
        let Some(gather) = &mut self.gather else { return Vec::new() };
        let runs = gather.release();
        for run in &runs {
            if let Some((first, others)) = run.tags.split_first() {
                self.riders.extend(others.iter().map(|rider| (*rider, *first)));
            }
        }
        runs
    }

    /// One of those that `tag` discards for, if there is one left.
    pub(crate) fn next_rider(&mut self, tag: u16) -> Option<u16> {
        let place = self.riders.iter().position(|(_, carrier)| *carrier == tag)?;
        Some(self.riders.swap_remove(place).0)
    }

    /// A request is to discard a chunk when its turn comes.
    pub(crate) fn queue(&mut self, tag: u16) {
        self.waiting.push_back(tag);
    }

    /// Whose turn it is, if it is time for a chunk. It is asked for now.
    pub(crate) fn next_turn(
        &mut self,
        now: impl FnOnce() -> Instant,
        activity: &Activity,
    ) -> Option<u16> {
        if self.waiting.is_empty() {
            if !self.pace.is_asked() && !self.more_to_come {
                self.since = None;
            }
            return None;
        }
        let now = now();
        let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
        if !self.pace.is_ready(now, waited, || activity.look()) {
            return None;
        }
        self.pace.begin(now);
        self.waiting.pop_front()
    }

    /// How much of a range to ask for at once.
    pub(crate) fn cut(&self, len: u64) -> u64 {
        self.pace.cut(len)
    }

    /// The host has answered a chunk of so many bytes. What it is a part of may not be all of its command.
    pub(crate) fn end(&mut self, now: Instant, bytes: u64, more: bool, activity: &Activity) {
        self.more_to_come = more;
        self.pace.end(now, bytes, activity.chunk_ended());
    }

    /// When there is something to do, if no answer comes first.
    pub(crate) fn due(&self) -> Option<Instant> {
        let gathered = self.gather.as_ref().and_then(Gather::due);
        let turn = if self.waiting.is_empty() { None } else { self.pace.due() };
        [gathered, turn].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::activity::Traffic;
    use super::*;
    use crate::ByteOffset;

    const MS: Duration = Duration::from_millis(1);

    /// The discards of one engine beside the transfers of another, of which one is in flight all the time. A chunk
    /// takes a millisecond.
    struct Disk {
        activity: Activity,
        turns: Turns,
        other: Arc<Transfers>,
        now: Instant,
    }

    impl Disk {
        fn new() -> Self {
            let activity = Activity::default();
            let turns = Turns::new(None, &activity);
            let other = activity.join();
            other.begin();
            Self { activity, turns, other, now: Instant::now() }
        }

        fn next_turn(&mut self) -> Option<u16> {
            self.turns.next_turn(|| self.now, &self.activity)
        }

        /// The host answers what it was asked.
        fn answer(&mut self) {
            self.now += MS;
            self.turns.end(self.now, 1, false, &self.activity);
        }

        /// Waits until it is the turn of a discard, while a transfer ends at each look. How long that was.
        fn rest(&mut self) -> Duration {
            let start = self.now;
            let mut looks = 0;
            while self.next_turn().is_none() {
                self.now = self.turns.due().unwrap();
                self.other.end();
                self.other.begin();
                looks += 1;
                assert!(looks < 1000, "it does not end");
            }
            self.now - start
        }

        /// Rests and discards for so long, with another discard waiting at each moment. How long the rests were at least
        /// and at most.
        fn discard_for(&mut self, time: Duration) -> (Duration, Duration) {
            let (start, mut rests) = (self.now, (Duration::MAX, Duration::ZERO));
            while self.now - start < time {
                self.turns.queue(1);
                let rest = self.rest();
                rests = (rests.0.min(rest), rests.1.max(rest));
                self.answer();
            }
            rests
        }
    }

    #[test]
    fn after_ten_seconds_of_waiting_only_the_least_rest_is_kept() {
        let mut disk = Disk::new();
        disk.turns.queue(1);
        assert_eq!(disk.rest(), Duration::ZERO, "nothing was discarded before");
        disk.answer();
        let patient = |rests: (Duration, Duration)| 250 * MS <= rests.0 && rests.1 <= 260 * MS;
        assert!(patient(disk.discard_for(9_700 * MS)));
        disk.discard_for(600 * MS);
        assert_eq!(disk.discard_for(1000 * MS), (4 * MS, 4 * MS));
        assert_eq!(disk.next_turn(), None);
        assert!(patient(disk.discard_for(9_700 * MS)), "for a moment nobody waited");
    }

    #[test]
    fn what_is_under_way_has_not_waited_in_vain() {
        let mut disk = Disk::new();
        disk.discard_for(11_000 * MS);
        disk.turns.queue(2);
        disk.rest();
        assert_eq!(disk.next_turn(), None, "a chunk is under way and nothing waits");
        disk.answer();
        disk.turns.queue(3);
        assert_eq!(disk.rest(), 4 * MS);
    }

    #[test]
    fn what_one_engine_transfers_all_see() {
        let disk = Disk::new();
        disk.turns.transfer_begins();
        assert!(!disk.turns.transfers_none());
        assert_eq!(disk.activity.look().in_flight, 2);
        disk.turns.transfer_ends();
        assert!(disk.turns.transfers_none());
        let Traffic { ended, in_flight, .. } = disk.activity.look();
        assert_eq!((ended, in_flight), (1, 1));
    }

    /// A disk whose host frees so many bytes at a time, with a discard of each quarter of the first waiting.
    fn quarters(granularity: u32) -> Disk {
        let limits = DiscardLimits { granularity, alignment: 0, reads_zero: true };
        let disk = Disk::new();
        let mut turns = Turns::new(Some(limits), &disk.activity);
        for tag in 0..4 {
            let start = ByteOffset(u64::from(tag) * u64::from(granularity) / 4);
            let range = ByteRange { start, len: u64::from(granularity) / 4 };
            assert!(turns.gather(tag, range, disk.now));
        }
        Disk { turns, ..disk }
    }

    #[test]
    fn pieces_wait_two_milliseconds_and_then_one_discards_for_all() {
        let mut disk = quarters(4096);
        let Disk { turns, now, .. } = &mut disk;
        assert_eq!((turns.len(), turns.due()), (4, Some(*now + 2 * MS)));
        assert!(turns.gathers(3) && !turns.gathers(4));
        assert!(!turns.is_gathered(*now + MS) && turns.is_gathered(*now + 2 * MS));
        let whole = ByteRange { start: ByteOffset(0), len: 4096 };
        assert_eq!(turns.release(), [Run { tags: vec![0, 1, 2, 3], range: whole, gathered: 4096 }]);
        assert_eq!((turns.len(), turns.due()), (0, None));
        assert_eq!(turns.next_rider(1), None);
        let mut riders: Vec<_> = std::iter::from_fn(|| turns.next_rider(0)).collect();
        riders.sort_unstable();
        assert_eq!(riders, [1, 2, 3]);
    }

    #[test]
    fn a_piece_that_waits_for_its_neighbours_can_be_taken_out() {
        let mut turns = quarters(4096).turns;
        assert!(turns.cancel(1) && !turns.cancel(1));
        assert!(!turns.gathers(1) && turns.len() == 3);
    }

    #[test]
    fn what_comes_first_is_due_whether_pieces_or_a_turn() {
        let mut disk = quarters(4096);
        disk.turns.queue(7);
        assert_eq!(disk.next_turn(), Some(7));
        disk.answer();
        disk.turns.queue(8);
        assert_eq!(disk.turns.len(), 5);
        assert_eq!(disk.turns.due(), Some(disk.now + MS), "the pieces");
        let _ = disk.turns.release();
        assert_eq!(disk.turns.due(), Some(disk.now + 4 * MS), "the end of the rest");
    }

    #[test]
    fn a_chunk_is_of_whole_granules() {
        assert_eq!(quarters(3 << 20).turns.cut(100 << 20), 6 << 20);
    }

    #[test]
    fn those_that_came_first_discard_first_one_chunk_at_a_time() {
        let mut disk = Disk::new();
        (7..10).for_each(|tag| disk.turns.queue(tag));
        assert_eq!((disk.next_turn(), disk.next_turn()), (Some(7), None));
        assert_eq!(disk.turns.due(), None, "the host's answer comes first");
        disk.answer();
        assert_eq!(disk.turns.due(), Some(disk.now + 4 * MS));
        assert!(disk.turns.cancel(8) && !disk.turns.cancel(8));
        disk.now += 250 * MS;
        assert_eq!((disk.next_turn(), disk.turns.len()), (Some(9), 0));
        disk.answer();
        assert_eq!(disk.turns.due(), None, "nobody waits for the end of the rest");
    }

    #[test]
    fn a_chunk_makes_the_other_engines_rest_anew() {
        let mut disk = Disk::new();
        let mut second = Turns::new(None, &disk.activity);
        let now = disk.now;
        let turn = |turns: &mut Turns, now| turns.next_turn(|| now, &disk.activity).is_some();
        let pass = |count| (0..count).for_each(|_| disk.other.end());
        disk.turns.queue(1);
        second.queue(1);
        assert!(turn(&mut disk.turns, now) && turn(&mut second, now));
        disk.turns.end(now + MS, 1, false, &disk.activity);
        disk.turns.queue(1);
        pass(200);
        second.end(now + 4 * MS, 1, false, &disk.activity);
        pass(255);
        assert!(!turn(&mut disk.turns, now + 10 * MS));
        pass(1);
        assert!(turn(&mut disk.turns, now + 20 * MS));
    }
}
