//! Random requests, many in flight, against a model of the disk in memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::collections::HashMap;
use std::ops::Range;

use block::{
    Backend, CacheMode, DiskOptions, Durability, EngineKind, Geometry, MemoryDisk, Operation,
    RawFile, Segment,
};
use proptest::prelude::*;

use common::{DEPTH, Memory, Rig, discard, numbered, numbered_file, read, write, zero};

const BLOCKS: usize = 256;
const SECTOR: usize = 512;
/// More than a bounce buffer holds.
const MAX_BLOCKS: usize = 600;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Zero { unmap: bool },
    Discard,
    Flush,
}

/// One request and the framing of its memory.
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    block: usize,
    blocks: usize,
    durable: bool,
    /// Offset of the first segment in memory.
    skew: usize,
    cuts: Vec<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Read),
        5 => Just(Kind::Write),
        2 => any::<bool>().prop_map(|unmap| Kind::Zero { unmap }),
        1 => Just(Kind::Discard),
        1 => Just(Kind::Flush),
    ];
    let blocks = prop_oneof![20 => 1..24usize, 1 => 24..MAX_BLOCKS];
    let skew = prop_oneof![Just(0), Just(SECTOR), 0..4096usize];
    let cut = prop_oneof![(0..64usize).prop_map(|n| n * SECTOR), 0..32768usize];
    let cuts = proptest::collection::vec(cut, 0..6);
    (kind, 0..BLOCKS * 4, blocks, any::<bool>(), skew, cuts).prop_map(
        |(kind, block, blocks, durable, skew, cuts)| Step {
            kind,
            block,
            blocks,
            durable,
            skew,
            cuts,
        },
    )
}

impl Step {
    fn bytes(&self) -> Range<usize> {
        match self.kind {
            Kind::Flush => 0..0,
            _ => self.block * SECTOR..(self.block + self.blocks) * SECTOR,
        }
    }

    fn op(&self) -> Operation {
        let (start, len) = (self.bytes().start as u64, self.bytes().len() as u64);
        let durability = if self.durable { Durability::Durable } else { Durability::Volatile };
        match self.kind {
            Kind::Read => read(start),
            Kind::Write => write(start, durability),
            Kind::Zero { unmap } => zero(start, len, unmap, durability),
            Kind::Discard => discard(start, len, durability),
            Kind::Flush => Operation::Flush,
        }
    }

    fn segments(&self, memory: &mut Memory) -> Vec<Segment> {
        if !matches!(self.kind, Kind::Read | Kind::Write) {
            return vec![];
        }
        let len = self.bytes().len();
        let mut cuts: Vec<_> = self.cuts.iter().map(|cut| cut.min(&len)).copied().collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.windows(2).map(|cut| memory.segment(self.skew + cut[0], cut[1] - cut[0])).collect()
    }
}

/// A request in flight.
struct InFlight {
    bytes: Range<usize>,
    memory: Memory,
    skew: usize,
    /// The result of a read; `None` matches any byte.
    expected: Option<Vec<Option<u8>>>,
}

struct Model {
    rig: Rig,
    /// `None` for discarded bytes, whose content is undefined.
    disk: Vec<Option<u8>>,
    in_flight: HashMap<u16, InFlight>,
}

impl Model {
    fn run(&mut self, number: usize, step: &Step) {
        let bytes = step.bytes();
        let overlaps =
            |other: &InFlight| other.bytes.start < bytes.end && bytes.start < other.bytes.end;
        while self.in_flight.len() == usize::from(DEPTH) || self.in_flight.values().any(overlaps) {
            self.complete();
        }
        let tag = (0..DEPTH).find(|tag| !self.in_flight.contains_key(tag)).unwrap();
        let fill = u8::try_from(number % 251).unwrap();
        let mut memory = Memory::filled(fill, (step.skew + bytes.len()) as u64);
        for (n, at) in (step.skew..step.skew + bytes.len()).enumerate().step_by(SECTOR) {
            memory.set(at, u8::try_from(n / SECTOR % 256).unwrap());
        }
        let content = memory.bytes()[step.skew..].to_vec();
        let segments = step.segments(&mut memory);
        self.rig.push(tag, step.op(), segments);
        let expected = match step.kind {
            Kind::Read => Some(self.disk[bytes.clone()].to_vec()),
            Kind::Write => {
                self.disk.splice(bytes.clone(), content.into_iter().map(Some));
                None
            }
            Kind::Zero { .. } => {
                self.disk[bytes.clone()].fill(Some(0));
                None
            }
            Kind::Discard => {
                self.disk[bytes.clone()].fill(None);
                None
            }
            Kind::Flush => None,
        };
        self.in_flight.insert(tag, InFlight { bytes, memory, skew: step.skew, expected });
        if number.is_multiple_of(3) {
            self.rig.submit();
        }
    }

    fn complete(&mut self) {
        let done = self.rig.complete();
        done.result.unwrap();
        let request = self.in_flight.remove(&done.tag).expect("each request completes once");
        if let Some(expected) = request.expected {
            assert_matches(&request.memory.bytes()[request.skew..], &expected);
        }
    }
}

fn assert_matches(found: &[u8], expected: &[Option<u8>]) {
    assert_eq!(found.len(), expected.len());
    let differs_at =
        found.iter().zip(expected).position(|(found, e)| e.is_some_and(|e| e != *found));
    assert_eq!(differs_at, None, "offset of the first wrong byte");
}

/// Size of the disk in bytes.
const SIZE: usize = (BLOCKS * 4 + MAX_BLOCKS) * SECTOR;

/// Runs the steps on a disk with this content; returns the expected content afterwards.
fn run(disk: &dyn Backend, content: Vec<u8>, steps: &[Step]) -> Vec<Option<u8>> {
    let content = content.into_iter().map(Some).collect();
    let mut model = Model { rig: Rig::new(disk), disk: content, in_flight: HashMap::new() };
    for (number, step) in steps.iter().enumerate() {
        model.run(number, step);
    }
    while !model.in_flight.is_empty() {
        model.complete();
    }
    model.rig.flush().unwrap();
    model.disk
}

fn check(mode: CacheMode, engine: EngineKind, steps: &[Step]) {
    let file = numbered_file(SIZE as u64);
    let options = DiskOptions { engine, ..DiskOptions::new(mode) };
    let disk = RawFile::open(file.path(), &options).unwrap();
    let expected = run(&disk, numbered(0, SIZE as u64), steps);
    assert_matches(&std::fs::read(file.path()).unwrap(), &expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn buffered_io(steps in proptest::collection::vec(step(), 1..120)) {
        check(CacheMode::WriteBack, EngineKind::IoUring, &steps);
    }

    #[test]
    fn direct_io(steps in proptest::collection::vec(step(), 1..120)) {
        check(CacheMode::None, EngineKind::IoUring, &steps);
    }

    #[test]
    fn thread_pool(steps in proptest::collection::vec(step(), 1..120), direct: bool) {
        let mode = if direct { CacheMode::None } else { CacheMode::WriteBack };
        check(mode, EngineKind::Threads, &steps);
    }

    #[test]
    fn memory_disk(steps in proptest::collection::vec(step(), 1..120)) {
        let geometry = Geometry {
            capacity: SIZE as u64,
            logical_block: 512,
            physical_block: 512,
            optimal_io: 0,
            discard: None,
        };
        let disk = MemoryDisk::new(geometry, CacheMode::WriteBack, false);
        let expected = run(&disk, vec![0; SIZE], &steps);
        assert_matches(&disk.content(), &expected);
    }
}
