//! One schedule.

use std::cell::RefCell;
use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use fixtures::Random;
use rustix::event::{EventfdFlags, eventfd};

use super::super::super::levels::Levels;
use super::super::super::seats::Seats;
use super::super::super::unflushed::tests::BOOT;
use super::super::LayerEngine;
use super::SECTOR;
use super::counts::Counts;
use super::layout::{
    BASE_SECTORS, BLOCKS, MAP_AT, SECTORS, content, empty_layer, levels, read, sector, value,
};
use super::oracle::{Oracle, Outcome};
use super::store::{Medium, Store, StoreEngine};
use crate::kick::Kick;
use crate::page::LentPages;
use crate::{
    ByteOffset, ByteRange, Completion, Durability, EngineSetup, IoEngine, Miscompare, Operation,
    Request, Segments,
};

/// Requests in flight of one engine.
const DEPTH: u16 = 4;
const STEPS: usize = 120;

struct InFlight {
    op: Operation,
    first: usize,
    values: Vec<u64>,
    /// Of a flush: what it covers, by sector. Of others: the values of their sectors before.
    mark: Vec<usize>,
    pages: LentPages,
    count: usize,
    /// Of a read: what each sector might hold when it was pushed.
    readable: Vec<Vec<u64>>,
    is_canceled: bool,
}

pub(super) struct Queue {
    pub(super) engine: LayerEngine,
    /// By level.
    pub(super) stores: Vec<Rc<RefCell<Store>>>,
    kick: OwnedFd,
    /// By tag.
    in_flight: Vec<Option<InFlight>>,
}

pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) random: Random,
    /// From the top down to the base, between which are one or more layers.
    pub(super) media: Vec<Rc<RefCell<Medium>>>,
    /// The content of each sector when a top was frozen, if that was certain, from the lowest one
    /// up.
    pub(super) frozen: Vec<Vec<Option<u64>>>,
    pub(super) levels: Arc<Levels>,
    pub(super) queues: Vec<Queue>,
    pub(super) oracle: Oracle,
    pub(super) next_value: u64,
    durability: Durability,
    pub(super) fails: bool,
    /// The guest survives a kill of the program.
    pub(super) is_served: bool,
    boot: u8,
    pub(super) counts: Counts,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut next_value = 1;
        let mut middle = empty_layer(&mut next_value);
        middle[MAP_AT] = u8::try_from(random.below(256)).unwrap();
        let top = empty_layer(&mut next_value);
        let base = content(BASE_SECTORS * SECTOR, BASE_SECTORS, 0, &mut next_value);
        let media = vec![Medium::new(&top), Medium::new(&middle), Medium::new(&base)];
        let (is_served, boot) = (random.below(2) == 0, 1);
        BOOT.set(Some(boot));
        let levels = levels(&media, is_served);
        let oracle = Oracle::new((0..SECTORS).map(|index| read(&levels, &media, index)));
        let durability = match random.below(4) {
            0 => Durability::Durable,
            _ => Durability::Volatile,
        };
        let fails = random.below(3) == 0;
        let queues = Vec::new();
        let counts = Counts::default();
        let mut schedule = Self {
            seed,
            random,
            media,
            frozen: Vec::new(),
            levels,
            queues,
            oracle,
            next_value,
            durability,
            fails,
            is_served,
            boot,
            counts,
        };
        schedule.queues = (0..2).map(|_| schedule.queue()).collect();
        schedule
    }

    fn queue(&self) -> Queue {
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let stores: Vec<_> = self.media.iter().map(Store::new).collect();
        let engines = stores
            .iter()
            .map(|store| -> Box<dyn IoEngine> { Box::new(StoreEngine(Rc::clone(store))) });
        let depth = LayerEngine::level_depth(DEPTH);
        let setup = EngineSetup { depth, memory: &[], kick: kick.as_fd() };
        let own = Kick::new(kick.as_fd()).unwrap();
        let levels = Arc::clone(&self.levels);
        let mut engine = LayerEngine::new(levels, engines.collect(), depth, own.clone());
        let seats: Arc<Seats> = Arc::default();
        engine.take_seat(seats.seat(own), &setup);
        let in_flight = std::iter::repeat_with(|| None).take(DEPTH.into()).collect();
        Queue { engine, stores, kick, in_flight }
    }

    pub(super) fn play(mut self) -> Counts {
        for _ in 0..STEPS {
            let queue = self.random.below(2);
            match self.random.below(100) {
                0..8 => self.push_run(queue),
                8..40 => self.push(queue),
                40..94 => self.execute(queue),
                94 => self.cancel(queue),
                95 => self.cut_power_or_kill(),
                96 => self.reset(queue),
                97 => self.snapshot(),
                _ => self.cut_power_or_drain(),
            }
        }
        self.drain();
        for first in 0..SECTORS {
            let found = read(&self.levels, &self.media, first);
            self.check(self.oracle.readable(first).contains(&found), first, found, "at the end");
        }
        self.check_frozen();
        self.counts
    }

    fn check(&self, is_legal: bool, sector: usize, found: u64, when: &str) {
        let (seed, values) = (self.seed, self.oracle.values(sector));
        assert!(is_legal, "seed {seed}: sector {sector} holds {found} {when}, not of {values:?}");
    }

    pub(super) fn push(&mut self, queue: usize) {
        let Some(tag) = self.queues[queue].in_flight.iter().position(Option::is_none) else {
            return;
        };
        let kind = self.random.below(12);
        let (first, count) = if self.random.below(2) == 0 {
            let first = self.random.below(BLOCKS);
            (first * 8, (1 + self.random.below(2.min(BLOCKS - first))) * 8)
        } else {
            let first = self.random.below(SECTORS);
            (first, 1 + self.random.below(20.min(SECTORS - first)))
        };
        if kind != 0 && !self.oracle.is_quiet(first, count) {
            return;
        }
        let at = ByteOffset((first * SECTOR) as u64);
        let range = ByteRange { start: at, len: (count * SECTOR) as u64 };
        let durability = match self.durability {
            Durability::Volatile if self.random.below(8) == 0 => Durability::Durable,
            durability => durability,
        };
        let op = match kind {
            0 => Operation::Flush,
            1..4 => Operation::Read { at },
            4..8 => Operation::Write { at, durability },
            8 => Operation::CompareAndWrite { at, durability },
            9 | 10 => {
                Operation::WriteZeroes { range, unmap: self.random.below(2) == 0, durability }
            }
            _ => Operation::Discard { range, durability, more_follows: false },
        };
        self.push_op(queue, u16::try_from(tag).unwrap(), op, first, count);
    }

    /// Pushes writes of whole blocks one behind the other.
    fn push_run(&mut self, queue: usize) {
        let first = self.random.below(BLOCKS);
        for block in first..BLOCKS.min(first + usize::from(DEPTH)) {
            let tag = self.queues[queue].in_flight.iter().position(Option::is_none);
            let Some(tag) = tag.filter(|_| self.oracle.is_quiet(block * 8, 8)) else { return };
            let at = ByteOffset((block * 8 * SECTOR) as u64);
            let op = Operation::Write { at, durability: Durability::Volatile };
            self.push_op(queue, u16::try_from(tag).unwrap(), op, block * 8, 8);
        }
    }

    pub(super) fn push_op(
        &mut self,
        queue: usize,
        tag: u16,
        op: Operation,
        first: usize,
        count: usize,
    ) {
        let values: Vec<u64> = match op {
            Operation::Write { .. } | Operation::CompareAndWrite { .. } => {
                (self.next_value..).take(count).collect()
            }
            Operation::WriteZeroes { .. } | Operation::Discard { .. } => vec![0; count],
            Operation::Read { .. } | Operation::Flush => Vec::new(),
        };
        self.next_value += values.len() as u64;
        let mut pages = LentPages::zeroed(2 * count * SECTOR);
        let bytes = pages.bytes().unwrap();
        bytes.fill(0xee);
        let mut len = 0;
        if matches!(op, Operation::CompareAndWrite { .. }) {
            for index in first..first + count {
                // A sector that may hold several values miscompares mostly.
                let expected = self.oracle.value(index).unwrap_or(u64::MAX);
                let expected = if self.random.below(50) == 0 { u64::MAX } else { expected };
                bytes[len..len + SECTOR].copy_from_slice(&sector(expected));
                len += SECTOR;
            }
        }
        match op {
            Operation::Write { .. } | Operation::CompareAndWrite { .. } => {
                for value in &values {
                    bytes[len..len + SECTOR].copy_from_slice(&sector(*value));
                    len += SECTOR;
                }
            }
            Operation::Read { .. } => len = count * SECTOR,
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => {}
        }
        let segment = if len > 0 { pages.lend(tag, 0, len) } else { None };
        let mut segments: Segments = segment.into_iter().collect();
        let mark = match op {
            Operation::Flush => self.oracle.mark(),
            _ => self.oracle.counts(first, count),
        };
        let readable = (first..first + count).map(|index| self.oracle.readable(index)).collect();
        self.oracle.begin(first, &values);
        self.counts.requests += 1;
        let queue = &mut self.queues[queue];
        queue.in_flight[usize::from(tag)] =
            Some(InFlight { op, first, values, mark, pages, count, readable, is_canceled: false });
        let riders = queue.engine.riders;
        queue.engine.push(Request { tag, op, segments: &mut segments });
        self.counts.merged += u64::from(queue.engine.riders > riders);
        if self.random.below(3) == 0 {
            queue.engine.submit().unwrap();
            self.reap();
        }
    }

    /// Executes a request of a level.
    pub(super) fn execute(&mut self, queue: usize) {
        self.queues[queue].engine.submit().unwrap();
        let level = self.random.below(self.media.len());
        let mut store = self.queues[queue].stores[level].borrow_mut();
        let pending = store.pending();
        if pending == 0 {
            return;
        }
        let index = self.random.below(pending);
        let fails = self.fails && self.random.below(15) == 0;
        store.execute(index, fails.then_some(libc::EIO));
        drop(store);
        self.reap();
    }

    /// Reaps the engines that have something to reap, or were kicked.
    pub(super) fn reap(&mut self) {
        let mut again = true;
        while again {
            again = false;
            for queue in 0..self.queues.len() {
                let kicked = rustix::io::read(&self.queues[queue].kick, &mut [0; 8]).is_ok();
                if kicked {
                    self.queues[queue].engine.submit().unwrap();
                }
                let mut completed = Vec::new();
                if kicked || self.queues[queue].engine.is_ready() {
                    self.queues[queue].engine.reap(&mut completed);
                    again = true;
                }
                for completion in completed {
                    self.complete(queue, &completion);
                }
            }
        }
    }

    fn complete(&mut self, queue: usize, completion: &Completion) {
        let slot = &mut self.queues[queue].in_flight[usize::from(completion.tag)];
        let mut request = slot.take().expect("a request completes once");
        request.pages.take_back(completion);
        let InFlight { op, first, ref values, ref mark, count, .. } = request;
        self.counts.failed += u64::from(completion.result.is_err());
        let errno = completion.result.as_ref().err().and_then(std::io::Error::raw_os_error);
        let is_legal = !request.is_canceled || errno == Some(libc::ECANCELED);
        assert!(is_legal, "seed {}: a cancelled request ends with {errno:?}", self.seed);
        match (op, &completion.result) {
            (Operation::Flush, Ok(())) => {
                self.counts.flushes += 1;
                self.oracle.flush(mark);
            }
            (Operation::Flush | Operation::Read { .. }, Err(_)) => {}
            (Operation::Read { .. }, Ok(())) => {
                let bytes = request.pages.bytes().unwrap();
                for index in 0..count {
                    let found = value(&bytes[index * SECTOR..][..SECTOR]);
                    // A change may have come between.
                    let is_legal = request.readable[index].contains(&found)
                        || self.oracle.values_from(first + index, mark[index]).contains(&found);
                    self.check(is_legal, first + index, found, "when it is read");
                }
            }
            // The host may have kept parts of it.
            (Operation::Discard { .. }, Ok(())) => {
                self.oracle.end(first, values.len(), Outcome::Unknown);
            }
            (_, Ok(())) => {
                let outcome = if op.is_durable() { Outcome::Durable } else { Outcome::Changed };
                self.oracle.end(first, values.len(), outcome);
            }
            (_, Err(error)) => {
                let inner = error.get_ref();
                let is_miscompare = inner.is_some_and(<dyn Error + Send + Sync>::is::<Miscompare>);
                self.counts.miscompared += u64::from(is_miscompare);
                let outcome = if is_miscompare { Outcome::Unchanged } else { Outcome::Unknown };
                self.oracle.end(first, values.len(), outcome);
            }
        }
    }

    pub(super) fn cancel(&mut self, queue: usize) {
        let tag = u16::try_from(self.random.below(DEPTH.into())).unwrap();
        let queue = &mut self.queues[queue];
        if let Some(request) = &mut queue.in_flight[usize::from(tag)]
            && queue.engine.cancel(tag)
        {
            request.is_canceled = true;
            self.counts.cancelled += 1;
        }
        self.reap();
    }

    /// Drops an engine, with its requests, and makes another one.
    pub(super) fn reset(&mut self, queue: usize) {
        let fresh = self.queue();
        let Queue { engine, in_flight, .. } = std::mem::replace(&mut self.queues[queue], fresh);
        drop(engine);
        self.forget(in_flight);
        self.counts.resets += 1;
        self.reap();
    }

    /// Requests that never complete: their changes may have been made.
    fn forget(&mut self, in_flight: Vec<Option<InFlight>>) {
        for mut request in in_flight.into_iter().flatten() {
            (0..DEPTH).for_each(|tag| request.pages.take_back(&Completion { tag, result: Ok(()) }));
            self.oracle.end(request.first, request.values.len(), Outcome::Unknown);
        }
    }

    fn cut_power_or_drain(&mut self) {
        if self.random.below(3) == 0 {
            return self.drain();
        }
        self.cut_power();
    }

    pub(super) fn cut_power_or_kill(&mut self) {
        if self.random.below(2) == 0 { self.cut_power() } else { self.kill() }
    }

    fn cut_power(&mut self) {
        self.counts.power_cuts += 1;
        self.end_program();
        for medium in &self.media {
            medium.borrow_mut().cut_power(&mut self.random);
        }
        self.boot = self.boot.wrapping_add(1);
        let found = self.start_program();
        for (index, found) in found.iter().enumerate() {
            self.check(self.oracle.may_survive(index, *found), index, *found, "after a power cut");
        }
        self.oracle = Oracle::new(found.into_iter());
    }

    /// Kills the program: what has completed is in the page cache.
    fn kill(&mut self) {
        self.counts.kills += 1;
        self.counts.served_kills += u64::from(self.is_served);
        self.end_program();
        let was_served = self.is_served;
        let found = self.start_program();
        for (index, found) in found.iter().enumerate() {
            let is_legal = match was_served {
                true => self.oracle.readable(index).contains(found),
                false => self.oracle.may_survive(index, *found),
            };
            self.check(is_legal, index, *found, "after a kill");
        }
        self.oracle.settle(&found);
    }

    fn end_program(&mut self) {
        for queue in std::mem::take(&mut self.queues) {
            for store in &queue.stores {
                store.borrow_mut().tear(&mut self.random);
            }
            let Queue { engine, in_flight, .. } = queue;
            drop(engine);
            self.forget(in_flight);
        }
    }

    /// Returns what the disk has.
    fn start_program(&mut self) -> Vec<u64> {
        if self.random.below(4) == 0 {
            self.is_served = !self.is_served;
        }
        BOOT.set(Some(self.boot));
        // As the map may be in the page cache only.
        self.media.iter().for_each(|medium| medium.borrow_mut().flush_all());
        self.levels = levels(&self.media, self.is_served);
        self.queues = (0..2).map(|_| self.queue()).collect();
        (0..SECTORS).map(|index| read(&self.levels, &self.media, index)).collect()
    }

    /// Lets the engines start the requests that they have.
    pub(super) fn submit(&mut self) {
        for queue in &mut self.queues {
            queue.engine.submit().unwrap();
        }
        self.reap();
    }

    /// Executes all requests. None may be left.
    pub(super) fn drain(&mut self) {
        self.submit();
        while self.queues.iter().any(|queue| queue.pending() > 0) {
            let queue = self.random.below(2);
            self.execute(queue);
        }
        let left = self.queues.iter().flat_map(|queue| queue.in_flight.iter().flatten()).next();
        assert!(
            left.is_none(),
            "seed {}: a request hangs: {:?}",
            self.seed,
            left.map(|left| left.op)
        );
    }
}

impl Queue {
    /// Requests of all levels that are not executed.
    pub(super) fn pending(&self) -> usize {
        self.stores.iter().map(|store| store.borrow().pending()).sum()
    }
}
