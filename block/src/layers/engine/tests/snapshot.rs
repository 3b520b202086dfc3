//! Snapshots in a schedule: the disk is held at any time, with requests in flight and pushed
//! meanwhile, and its top succeeded by another one, unless the power is cut or the hold abandoned.

use std::rc::Rc;
use std::sync::Arc;

use super::super::super::levels::Levels;
use super::super::super::unit::BLOCK_BYTES;
use super::super::successions::Spares;
use super::layout::{MAP_AT, SECTORS, empty_layer, read_from, top};
use super::schedule::Schedule;
use super::store::{Medium, Store, StoreEngine};
use crate::{ByteOffset, Durability, IoEngine, Operation};

/// Most levels of a disk.
const LEVELS: usize = 6;

impl Schedule {
    /// Freezes the top, or begins to.
    pub(super) fn snapshot(&mut self) {
        if self.media.len() == LEVELS {
            return;
        }
        self.levels.hold();
        while !self.queues.iter().all(|queue| queue.engine.is_drained()) {
            let queue = self.random.below(2);
            match self.random.below(20) {
                0 if self.random.below(10) == 0 => return self.cut_power_or_kill(),
                0 => return self.abandon(),
                1 => self.cancel(queue),
                2 => self.reset(queue),
                3..6 => self.push_kept(),
                _ => self.execute(queue),
            }
        }
        for _ in 0..self.random.below(4) {
            self.push_kept();
        }
        let is_idle = self.queues.iter().all(|queue| queue.pending() == 0);
        assert!(is_idle, "seed {}: a request of a held disk was started", self.seed);
        match self.random.below(8) {
            0 => return self.cut_power_or_kill(),
            1 => return self.abandon(),
            _ => self.sync(),
        }
        if self.random.below(8) == 0 {
            return self.cut_power_or_kill();
        }
        self.counts.snapshots += 1;
        self.frozen.push((0..SECTORS).map(|sector| self.oracle.value_before(sector)).collect());
        self.switch();
    }

    fn push_kept(&mut self) {
        let (queue, before) = (self.random.below(2), self.counts.requests);
        self.push(queue);
        self.counts.kept += self.counts.requests - before;
    }

    fn abandon(&mut self) {
        self.levels.admit();
        self.submit();
    }

    /// Makes the data and then the map durable.
    fn sync(&mut self) {
        let mut medium = self.media[0].borrow_mut();
        medium.flush_all();
        let mut page = [0; BLOCK_BYTES];
        self.levels.top.map.clean(0);
        self.levels.top.map.store(0, &mut page);
        medium.write(MAP_AT, &page, Durability::Durable);
    }

    fn switch(&mut self) {
        self.media.insert(0, Medium::new(&empty_layer(&mut self.next_value)));
        let top = top(&self.media[0], self.is_served);
        self.levels = Arc::new(Levels::succeeded_by(&self.levels, top));
        for queue in &mut self.queues {
            let [top, frozen] = [0, 1].map(|level| Store::new(&self.media[level]));
            queue.stores[0] = Rc::clone(&frozen);
            queue.stores.insert(0, Rc::clone(&top));
            let successions = queue.engine.successions.as_mut().unwrap();
            let engines: Vec<Box<dyn IoEngine>> =
                vec![Box::new(StoreEngine(top)), Box::new(StoreEngine(frozen))];
            successions.spares = Some(Spares { levels: 0..1, engines });
            queue.engine.switch_to(Arc::clone(&self.levels));
        }
        self.submit();
    }

    /// Each frozen level has what it had when it was frozen.
    pub(super) fn check_frozen(&self) {
        for (count, frozen) in (1..).zip(&self.frozen) {
            // The first one was frozen above the layer and the base that were there before.
            let level = self.media.len() - 2 - count;
            for (sector, expected) in frozen.iter().enumerate() {
                let found = read_from(&self.levels, &self.media, level, sector);
                let is_same = expected.is_none_or(|expected| expected == found);
                let (seed, expected) = (self.seed, frozen[sector]);
                assert!(
                    is_same,
                    "seed {seed}: snapshot {count} has {found} in sector {sector}, not {expected:?}"
                );
            }
        }
    }
}

/// It must not use other levels before its request has its result from these.
#[test]
fn an_engine_that_waits_for_the_other_one_is_not_drained() {
    let mut schedule = Schedule::new(1);
    schedule.fails = false;
    let at = ByteOffset(0);
    let write = Operation::Write { at, durability: Durability::Volatile };
    schedule.push_op(0, 0, write, 0, 8);
    schedule.drain();
    schedule.push_op(0, 0, Operation::Flush, 0, 0);
    schedule.push_op(1, 0, Operation::Flush, 0, 0);
    schedule.levels.hold();
    assert_eq!(schedule.queues[1].pending(), 0, "the other one writes the map");
    assert!(!schedule.queues[1].engine.is_drained());
    schedule.drain();
    assert!(schedule.queues.iter().all(|queue| queue.engine.is_drained()));
}
