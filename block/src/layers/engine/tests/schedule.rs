//! One schedule.

use std::cell::RefCell;
use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use fixtures::Random;
use rustix::event::{EventfdFlags, eventfd};

use super::super::super::header::Header;
use super::super::super::levels::{Answerer, Level, LevelMap, Levels, Top};
use super::super::super::map::LayerMap;
use super::super::super::unit::{BLOCK_BYTES, BLOCK_SIZE};
use super::super::LayerEngine;
use super::SECTOR;
use super::oracle::{Oracle, Outcome};
use super::store::{Medium, Store, StoreEngine};
use crate::page::LentPages;
use crate::{
    ByteOffset, ByteRange, Completion, DiscardLimits, Durability, EngineSetup, IoEngine,
    Miscompare, Operation, Request, Segments,
};

const BLOCKS: usize = 12;
const SECTORS: usize = BLOCKS * BLOCK_BYTES / SECTOR;
/// Requests in flight of one engine.
const DEPTH: u16 = 4;
/// Where the content of a layer starts in its file: behind one page of the map.
const DATA_AT: usize = 3 * BLOCK_BYTES;
/// Size of the base: it ends within a block.
const BASE_SECTORS: usize = SECTORS - 12;
const STEPS: usize = 120;
/// Granules of the disk: those of the file start at multiples of their size.
const GRANULE: u32 = 2 * BLOCK_SIZE;
const ALIGNMENT: u32 = BLOCK_SIZE;

/// How often each event has occurred.
#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: u64,
    failed: u64,
    miscompared: u64,
    flushes: u64,
    cancelled: u64,
    resets: u64,
    power_cuts: u64,
}

impl Counts {
    fn fields(&mut self) -> [&mut u64; 7] {
        let Self { requests, failed, miscompared, flushes, cancelled, resets, power_cuts } = self;
        [requests, failed, miscompared, flushes, cancelled, resets, power_cuts]
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self { requests, failed, miscompared, flushes, cancelled, resets, power_cuts } = other;
        let other = [requests, failed, miscompared, flushes, cancelled, resets, power_cuts];
        self.fields().into_iter().zip(other).for_each(|(sum, count)| *sum += count);
    }

    pub(super) fn all_occurred(&mut self) -> bool {
        self.fields().into_iter().all(|count| *count > 0)
    }
}

/// The content of a sector with a value.
fn sector(value: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// The value of a sector, whose parts must agree.
fn value(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    let value = u64::from_le_bytes(words[0]);
    assert!(words.iter().all(|word| u64::from_le_bytes(*word) == value), "a sector is torn");
    value
}

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
}

struct Queue {
    engine: LayerEngine,
    /// By level.
    stores: Vec<Rc<RefCell<Store>>>,
    kick: OwnedFd,
    /// By tag.
    in_flight: Vec<Option<InFlight>>,
}

pub(super) struct Schedule {
    seed: u64,
    random: Random,
    /// Of the top, a layer below it, and the base.
    media: [Rc<RefCell<Medium>>; 3],
    levels: Arc<Levels>,
    queues: Vec<Queue>,
    oracle: Oracle,
    next_value: u64,
    durability: Durability,
    fails: bool,
    counts: Counts,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut next_value = 1;
        let mut content = |len: usize, sectors: usize, start: usize| {
            let mut content = vec![0; len];
            for index in 0..sectors {
                content[start + index * SECTOR..][..SECTOR].copy_from_slice(&sector(next_value));
                next_value += 1;
            }
            content
        };
        let mut middle = content(DATA_AT + SECTORS * SECTOR, SECTORS, DATA_AT);
        middle[usize::try_from(Header::map_at()).unwrap()] =
            u8::try_from(random.below(256)).unwrap();
        // Data of lost writes, where the map has no bits.
        let top = content(DATA_AT + SECTORS * SECTOR, SECTORS, DATA_AT);
        let base = content(BASE_SECTORS * SECTOR, BASE_SECTORS, 0);
        let media = [Medium::new(&top), Medium::new(&middle), Medium::new(&base)];
        let levels = levels(&media);
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
            levels,
            queues,
            oracle,
            next_value,
            durability,
            fails,
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
        let engine = LayerEngine::new(Arc::clone(&self.levels), engines.collect(), &setup).unwrap();
        let in_flight = std::iter::repeat_with(|| None).take(DEPTH.into()).collect();
        Queue { engine, stores, kick, in_flight }
    }

    pub(super) fn play(mut self) -> Counts {
        for _ in 0..STEPS {
            let queue = self.random.below(2);
            match self.random.below(100) {
                0..40 => self.push(queue),
                40..94 => self.execute(queue),
                94..96 => self.cancel(queue),
                96 => self.reset(queue),
                _ => self.cut_power_or_drain(),
            }
        }
        self.drain();
        for first in 0..SECTORS {
            let found = read(&self.levels, &self.media, first);
            self.check(self.oracle.readable(first).contains(&found), first, found, "at the end");
        }
        self.counts
    }

    fn check(&self, is_legal: bool, sector: usize, found: u64, when: &str) {
        let (seed, values) = (self.seed, self.oracle.values(sector));
        assert!(is_legal, "seed {seed}: sector {sector} holds {found} {when}, not of {values:?}");
    }

    fn push(&mut self, queue: usize) {
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

    fn push_op(&mut self, queue: usize, tag: u16, op: Operation, first: usize, count: usize) {
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
            Some(InFlight { op, first, values, mark, pages, count, readable });
        queue.engine.push(Request { tag, op, segments: &mut segments });
        queue.engine.submit().unwrap();
        self.reap();
    }

    /// Executes a request of a level.
    fn execute(&mut self, queue: usize) {
        let level = self.random.below(3);
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
    fn reap(&mut self) {
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

    fn cancel(&mut self, queue: usize) {
        let tag = u16::try_from(self.random.below(DEPTH.into())).unwrap();
        let queue = &mut self.queues[queue];
        if queue.in_flight[usize::from(tag)].is_some() && queue.engine.cancel(tag) {
            self.counts.cancelled += 1;
        }
        self.reap();
    }

    /// Drops an engine, with its requests, and makes another one.
    fn reset(&mut self, queue: usize) {
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
        self.counts.power_cuts += 1;
        for queue in std::mem::take(&mut self.queues) {
            for store in &queue.stores {
                store.borrow_mut().tear(&mut self.random);
            }
            let Queue { engine, in_flight, .. } = queue;
            drop(engine);
            self.forget(in_flight);
        }
        for medium in &self.media {
            medium.borrow_mut().cut_power(&mut self.random);
        }
        self.levels = levels(&self.media);
        let found: Vec<u64> =
            (0..SECTORS).map(|index| read(&self.levels, &self.media, index)).collect();
        for (index, found) in found.iter().enumerate() {
            self.check(self.oracle.may_survive(index, *found), index, *found, "after a power cut");
        }
        self.oracle = Oracle::new(found.into_iter());
        self.queues = (0..2).map(|_| self.queue()).collect();
    }

    /// Executes all requests. None may be left.
    fn drain(&mut self) {
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
    fn pending(&self) -> usize {
        self.stores.iter().map(|store| store.borrow().pending()).sum()
    }
}

/// Opens the disk.
fn levels(media: &[Rc<RefCell<Medium>>; 3]) -> Arc<Levels> {
    let map = |medium: &Rc<RefCell<Medium>>| {
        let map = LayerMap::new(1);
        let at = usize::try_from(Header::map_at()).unwrap();
        map.load(0, &medium.borrow().read(at, BLOCK_BYTES));
        map
    };
    let (data_at, size) = (DATA_AT as u64, (SECTORS * SECTOR) as u64);
    let discard =
        Some(DiscardLimits { granularity: GRANULE, alignment: ALIGNMENT, reads_zero: true });
    let top = Top {
        data_at,
        map: map(&media[0]),
        logical_block: u32::try_from(SECTOR).unwrap(),
        is_read_only: false,
        ignores_flushes: false,
        discard,
    };
    let middle = Level { data_at, size, map: LevelMap::Layer(map(&media[1])) };
    let size_of_base = (BASE_SECTORS * SECTOR) as u64;
    let base = Level { data_at: 0, size: size_of_base, map: LevelMap::Raw };
    Arc::new(Levels::new(top, vec![middle, base], size))
}

/// The value of a sector, read without an engine.
fn read(levels: &Levels, media: &[Rc<RefCell<Medium>>; 3], index: usize) -> u64 {
    let at = (index * SECTOR) as u64;
    match levels.piece(0, at, at + SECTOR as u64) {
        (Answerer::Zeroes, _) => 0,
        (Answerer::Level(level), _) => {
            let place = usize::try_from(levels.place(level, at)).unwrap();
            value(&media[level].borrow().read(place, SECTOR))
        }
    }
}
