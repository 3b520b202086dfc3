//! Snapshots of disks that are written meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use block::{
    CacheMode, DiskOptions, Durability, EngineKind, LayeredDisk, Named, SnapshotError,
    create_layer, snapshot,
};
use tempfile::TempDir;

use common::{KIB, MIB, Memory, Rig, numbered, scratch};

const SIZE: u64 = 4 * MIB;
const DISKS: usize = 3;
const LIMIT: Duration = Duration::from_secs(20);
/// Requests in flight of a writer with a queue of its own.
const DEPTH: usize = 8;
/// Where the writers of the second queues write: sectors that share blocks with others.
const SECTORS_AT: u64 = MIB;

struct Fixture {
    folder: TempDir,
    options: DiskOptions,
    disks: Vec<LayeredDisk>,
}

impl Fixture {
    fn new(options: &DiskOptions, disks: usize) -> Self {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let base = folder.path().join("base");
        std::fs::write(&base, numbered(0, SIZE)).unwrap();
        let disks = (0..disks).map(|disk| {
            let path = folder.path().join(format!("{disk}.layer"));
            create_layer(&path, &base, None).unwrap();
            LayeredDisk::open(&path, &base, options).unwrap()
        });
        Self { disks: disks.collect(), folder, options: options.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn snapshot(&self, name: &str) -> Result<block::MadeSnapshot, SnapshotError> {
        let name = |index| OsString::from(format!("{index}.{name}.layer"));
        let disks: Vec<_> = self.disks.iter().zip((0..).map(name)).collect();
        snapshot(&disks, LIMIT)
    }

    /// The frozen layer of a disk, opened by another reader.
    fn frozen(&self, disk: usize, name: &str) -> LayeredDisk {
        let path = self.path(&format!("{disk}.{name}.layer"));
        LayeredDisk::open(&path, &self.path("base"), &self.options.clone().read_only()).unwrap()
    }
}

fn options(cache: CacheMode, engine: EngineKind) -> DiskOptions {
    DiskOptions { engine, block_size: Some(512), ..DiskOptions::new(cache) }
}

/// A sector that holds a number.
fn sector(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(64)
}

/// The number in each of `count` sectors.
fn numbers(rig: &mut Rig, at: u64, count: u64) -> Vec<u64> {
    let bytes = rig.read(at, count * 512).unwrap();
    let number = |sector: &[u8]| {
        let (words, _) = sector.as_chunks();
        assert!(words.iter().all(|word| word == &words[0]), "a torn sector");
        u64::from_le_bytes(words[0])
    };
    bytes.chunks(512).map(number).collect()
}

/// The numbers that a writer has started to write, and that were complete, by sector.
#[derive(Default)]
struct Progress {
    started: [AtomicU64; DEPTH],
    complete: [AtomicU64; DEPTH],
}

fn load(values: &[AtomicU64; DEPTH]) -> Vec<u64> {
    values.iter().map(|value| value.load(Ordering::SeqCst)).collect()
}

/// Writes growing numbers to sectors of one disk, several at a time.
fn write_sectors(disk: &LayeredDisk, progress: &Progress, stop: &AtomicBool) {
    let mut rig = Rig::new(disk);
    let mut memory: Vec<_> = (0..DEPTH).map(|_| Memory::filled(0, 512)).collect();
    let mut values = [1; DEPTH];
    let mut in_flight = DEPTH;
    let mut start = |rig: &mut Rig, slot: usize, value: u64| {
        progress.started[slot].store(value, Ordering::SeqCst);
        sector(value).iter().enumerate().for_each(|(at, byte)| memory[slot].set(at, *byte));
        let at = SECTORS_AT + slot as u64 * 512;
        let is_durable = value.is_multiple_of(3);
        let durability = if is_durable { Durability::Durable } else { Durability::Volatile };
        let tag = u16::try_from(slot).unwrap();
        rig.push(tag, common::write(at, durability), memory[slot].whole());
    };
    (0..DEPTH).for_each(|slot| start(&mut rig, slot, 1));
    while in_flight > 0 {
        let done = rig.complete();
        done.result.unwrap();
        let slot = usize::from(done.tag);
        progress.complete[slot].store(values[slot], Ordering::SeqCst);
        in_flight -= 1;
        if !stop.load(Ordering::SeqCst) {
            values[slot] += 1;
            start(&mut rig, slot, values[slot]);
            in_flight += 1;
        }
    }
}

/// Makes engines and drops them, as guests reset their disks.
fn reset_queues(disk: &LayeredDisk, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let mut rig = Rig::new(disk);
        assert_eq!(rig.read(2 * MIB, 4 * KIB).unwrap(), numbered(2 * MIB, 4 * KIB));
    }
}

/// Writes each number to one disk after the other. Returns the last one.
fn write_in_turn(disks: &[LayeredDisk], stop: &AtomicBool) -> u64 {
    let mut rigs: Vec<_> = disks.iter().map(|disk| Rig::new(disk)).collect();
    let mut value = 0;
    while !stop.load(Ordering::SeqCst) {
        value += 1;
        for disk in 0..rigs.len() {
            let mut memory = Memory::filled(0, 512);
            sector(value).iter().enumerate().for_each(|(at, byte)| memory.set(at, *byte));
            rigs[disk].push(0, common::write(0, Durability::Volatile), memory.whole());
            // A worker serves all of its engines, also while it waits for one.
            let mut completions = std::iter::repeat_with(|| {
                rigs.iter_mut().for_each(Rig::submit);
                rigs.iter_mut().filter_map(Rig::reap).next()
            });
            completions.find_map(|found| found).unwrap().result.unwrap();
        }
    }
    value
}

/// The numbers that were complete before a snapshot, and started after it, by disk.
type Bounds = Vec<(Vec<u64>, Vec<u64>)>;

/// A frozen layer has what was complete before, and nothing that was started after; of two disks
/// the one that was written later is not ahead.
fn check(fixture: &Fixture, name: &str, bounds: &Bounds) {
    let mut turns = Vec::new();
    for (disk, (complete, started)) in bounds.iter().enumerate() {
        let frozen = fixture.frozen(disk, name);
        let mut rig = Rig::new(&frozen);
        turns.push(numbers(&mut rig, 0, 1)[0]);
        let found = numbers(&mut rig, SECTORS_AT, DEPTH as u64);
        for slot in 0..DEPTH {
            let range = complete[slot]..=started[slot];
            assert!(range.contains(&found[slot]), "{name}, disk {disk}: {found:?} {range:?}");
        }
        let rest = rig.read(2 * MIB, 64 * KIB).unwrap();
        assert_eq!(rest, numbered(2 * MIB, 64 * KIB), "{name}, disk {disk}");
    }
    let is_ordered = turns.windows(2).all(|pair| pair[0] >= pair[1] && pair[0] <= pair[1] + 1);
    let first_is_in_turn = turns[0] <= turns[DISKS - 1] + 1;
    assert!(is_ordered && first_is_in_turn, "{name}: no one moment: {turns:?}");
}

fn snapshots_are_of_one_moment(cache: CacheMode, engine: EngineKind) {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let fixture = Fixture::new(&options(cache, engine), DISKS);
    let progress: Vec<_> = fixture.disks.iter().map(|_| Progress::default()).collect();
    let stop = AtomicBool::new(false);
    let mut bounds: Vec<Bounds> = Vec::new();
    let last = thread::scope(|scope| {
        let turns = scope.spawn(|| write_in_turn(&fixture.disks, &stop));
        for (disk, progress) in fixture.disks.iter().zip(&progress) {
            let stop = &stop;
            scope.spawn(move || write_sectors(disk, progress, stop));
            scope.spawn(move || reset_queues(disk, stop));
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        for name in NAMES {
            let before: Vec<_> = progress.iter().map(|disk| load(&disk.complete)).collect();
            // Some requests later.
            while progress
                .iter()
                .zip(&before)
                .any(|(disk, before)| disk.complete[0].load(Ordering::SeqCst) < before[0] + 3)
            {
                assert!(Instant::now() < deadline, "the writers hang");
                thread::sleep(Duration::from_millis(1));
            }
            let complete: Vec<_> = progress.iter().map(|disk| load(&disk.complete)).collect();
            let times = fixture.snapshot(name).inspect_err(|_| stop.store(true, Ordering::SeqCst));
            println!("{} {}: {:?}", cache.name(), engine.name(), times.unwrap());
            let started = progress.iter().map(|disk| load(&disk.started));
            bounds.push(complete.into_iter().zip(started).collect());
        }
        stop.store(true, Ordering::SeqCst);
        turns.join().unwrap()
    });
    for (name, bounds) in NAMES.iter().zip(&bounds) {
        check(&fixture, name, bounds);
    }
    for (disk, progress) in fixture.disks.iter().zip(&progress) {
        let mut rig = Rig::new(disk);
        assert_eq!(numbers(&mut rig, 0, 1), [last]);
        assert_eq!(numbers(&mut rig, SECTORS_AT, DEPTH as u64), load(&progress.complete));
    }
}

#[test]
fn snapshots_are_of_one_moment_none() {
    snapshots_are_of_one_moment(CacheMode::None, EngineKind::IoUring);
}

#[test]
fn snapshots_are_of_one_moment_writeback() {
    snapshots_are_of_one_moment(CacheMode::WriteBack, EngineKind::Threads);
}

#[test]
fn snapshots_are_of_one_moment_writethrough() {
    snapshots_are_of_one_moment(CacheMode::WriteThrough, EngineKind::IoUring);
}
