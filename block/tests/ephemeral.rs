//! Ephemeral disks: their changes leave nothing behind, and do not exceed their limit.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use block::{
    Backend, CacheMode, DiskOptions, Durability, EngineKind, EphemeralPlace, EphemeralState,
    LayeredDisk, Operation, create_layer, layer_chain,
};
use fixtures::host::Mount;
use fixtures::{Random, needs};
use tempfile::TempDir;

use common::{KIB, MIB, Memory, Rig, errno, numbered, numbered_file, scratch};

const SIZE: u64 = 8 * MIB;
const BLOCK: u64 = 4 * KIB;

fn options(engine: EngineKind) -> DiskOptions {
    // The cache mode has no effect.
    DiskOptions { engine, id: "root".to_owned(), ..DiskOptions::new(CacheMode::None) }
}

fn open(base: &Path, place: &EphemeralPlace, limit: Option<u64>) -> LayeredDisk {
    LayeredDisk::open_ephemeral(base, place, limit, &options(EngineKind::Auto)).unwrap()
}

fn state(disk: &LayeredDisk) -> EphemeralState {
    disk.status().ephemeral.unwrap()
}

fn write(rig: &mut Rig, at: u64, len: u64, byte: u8) -> Option<i32> {
    rig.fill(at, len, byte, Durability::Volatile).err().and_then(|error| error.raw_os_error())
}

/// Does an operation without data.
fn run(rig: &mut Rig, op: Operation) -> Option<i32> {
    rig.run(op, vec![]).err().and_then(|error| error.raw_os_error())
}

fn discard(start: u64, len: u64) -> Operation {
    common::discard(start, len, Durability::Volatile)
}

fn zero(start: u64, len: u64) -> Operation {
    common::zero(start, len, true, Durability::Volatile)
}

#[test]
fn changes_are_gone_with_the_disk() {
    let base = numbered_file(SIZE);
    let folder = TempDir::new_in(scratch()).unwrap();
    let is_empty = || fs::read_dir(folder.path()).unwrap().next().is_none();
    for place in [EphemeralPlace::Memory, EphemeralPlace::Folder(folder.path().into())] {
        for engine in [EngineKind::Auto, EngineKind::Threads] {
            let open = || {
                LayeredDisk::open_ephemeral(base.path(), &place, None, &options(engine)).unwrap()
            };
            let (disk, other) = (open(), open());
            assert_eq!(disk.cache_mode(), CacheMode::Unsafe);
            let mut rig = Rig::new(&disk);
            rig.fill(MIB + 512, MIB, 7, Durability::Volatile).unwrap();
            rig.fill(0, BLOCK, 7, Durability::Durable).unwrap();
            rig.flush().unwrap();
            disk.sync().unwrap();
            let mut expected = numbered(0, SIZE);
            expected[..4096].fill(7);
            expected[(1 << 20) + 512..(2 << 20) + 512].fill(7);
            assert!(rig.read(0, SIZE).unwrap() == expected, "{place:?}");
            assert_eq!(state(&disk).used, MIB + 2 * BLOCK);
            assert!(Rig::new(&other).read(0, SIZE).unwrap() == numbered(0, SIZE), "{place:?}");
            assert!(is_empty(), "a file has a name: {place:?}");
            drop((rig, disk, other));
            assert!(Rig::new(&open()).read(0, SIZE).unwrap() == numbered(0, SIZE), "{place:?}");
        }
    }
    assert!(fs::read(base.path()).unwrap() == numbered(0, SIZE));
}

#[test]
fn a_layer_below_an_ephemeral_disk_can_be_written_afterwards() {
    let base = numbered_file(SIZE);
    let folder = TempDir::new_in(scratch()).unwrap();
    let layer = folder.path().join("layer");
    create_layer(&layer, base.path(), None).unwrap();
    let opened = || LayeredDisk::open(&layer, base.path(), &DiskOptions::new(CacheMode::WriteBack));
    let writer = opened().unwrap();
    Rig::new(&writer).fill(0, BLOCK, 5, Durability::Volatile).unwrap();
    writer.sync().unwrap();
    let ephemeral = || {
        let options = options(EngineKind::Auto);
        LayeredDisk::open_ephemeral(&layer, &EphemeralPlace::Memory, None, &options)
    };
    let in_use = ephemeral().unwrap_err().to_string();
    assert!(in_use.contains("in use by process"), "{in_use}");
    drop(writer);
    let disk = ephemeral().unwrap();
    let mut rig = Rig::new(&disk);
    rig.fill(512, 512, 6, Durability::Volatile).unwrap();
    let mut expected = [5; 4096];
    expected[512..1024].fill(6);
    assert_eq!(rig.read(0, BLOCK).unwrap(), expected);
    let in_use = opened().unwrap_err().to_string();
    assert!(in_use.contains("in use by process"), "{in_use}");
    drop((rig, disk));
    assert!(!layer_chain(&layer).unwrap()[0].is_frozen);
    assert_eq!(Rig::new(&opened().unwrap()).read(0, BLOCK).unwrap(), [5; 4096]);
}

#[test]
fn a_write_beyond_the_limit_fails_and_changes_nothing() {
    let base = numbered_file(SIZE);
    let disk = open(base.path(), &EphemeralPlace::Memory, Some(16 * BLOCK));
    let mut rig = Rig::new(&disk);
    let mut expected = numbered(0, SIZE);
    assert_eq!(write(&mut rig, 0, 12 * BLOCK, 7), None);
    assert_eq!(write(&mut rig, MIB + 512, 2 * BLOCK, 7), None, "three blocks, of which two copied");
    expected[..12 * 4096].fill(7);
    expected[(1 << 20) + 512..][..2 * 4096].fill(7);
    for (at, len) in [(2 * MIB, 2 * BLOCK), (4 * MIB - 512, 1024), (0, MIB)] {
        assert_eq!(write(&mut rig, at, len, 9), Some(libc::ENOSPC), "{at}");
    }
    assert_eq!(run(&mut rig, zero(2 * MIB, MIB)), Some(libc::ENOSPC));
    assert_eq!(write(&mut rig, 3 * MIB, 512, 8), None, "the last block");
    expected[3 << 20..][..512].fill(8);
    assert_eq!(write(&mut rig, 0, 12 * BLOCK, 8), None, "the blocks have space already");
    expected[..12 * 4096].fill(8);
    let state = || state(&disk);
    let full = EphemeralState { used: 16 * BLOCK, limit: Some(16 * BLOCK), refused: 4 };
    assert_eq!(state(), full);
    assert!(rig.read(0, SIZE).unwrap() == expected);
    // A discard frees written blocks, and leaves those of the base.
    assert_eq!(run(&mut rig, discard(0, 64 * BLOCK)), None);
    expected[..12 * 4096].fill(0);
    assert!(rig.read(0, SIZE).unwrap() == expected);
    assert!(!disk.geometry().discard.unwrap().reads_zero);
    assert_eq!(write(&mut rig, 12 * BLOCK, 512, 9), Some(libc::ENOSPC));
    assert_eq!(write(&mut rig, 0, 12 * BLOCK, 9), None);
    assert_eq!(state(), EphemeralState { refused: 5, ..full });
}

/// Pushes eight random requests, and returns the blocks of each that it writes.
fn push_some(rig: &mut Rig, random: &mut Random, memory: &mut Memory) -> Vec<Range<u64>> {
    let push = |tag| {
        let start = random.next() % (MIB / 512) * 512;
        let len = ((1 + random.next() % 64) * 512).min(MIB - start);
        let blocks = start / BLOCK..(start + len).div_ceil(BLOCK);
        let (op, segments, blocks) = match random.below(8) {
            0 => (discard(start, len), vec![], 0..0),
            1 => (zero(start, len), vec![], blocks),
            _ => {
                let segment = memory.segment(0, usize::try_from(len).unwrap());
                (common::write(start, Durability::Volatile), vec![segment], blocks)
            }
        };
        rig.push(tag, op, segments);
        blocks
    };
    let blocks = (0..8).map(push).collect();
    rig.submit();
    blocks
}

/// Requests of two queues are in flight at the same time, and write the same blocks.
#[test]
fn blocks_are_counted_exactly() {
    let base = numbered_file(MIB);
    let mut random = Random::new(7);
    let (mut refused, mut made) = (0, 0);
    for _ in 0..10 {
        let limit = random.next() % 200 * BLOCK;
        let disk = open(base.path(), &EphemeralPlace::Memory, Some(limit));
        let mut rigs = [Rig::new(&disk), Rig::new(&disk)];
        let mut memory = Memory::filled(7, 64 * KIB);
        let mut written = BTreeSet::new();
        for _ in 0..20 {
            let pushed = rigs.each_mut().map(|rig| push_some(rig, &mut random, &mut memory));
            for (rig, pushed) in rigs.iter_mut().zip(pushed) {
                for _ in 0..pushed.len() {
                    let completion = rig.complete();
                    match completion.result {
                        Ok(()) => {
                            made += 1;
                            written.extend(pushed[usize::from(completion.tag)].clone());
                        }
                        refusal => {
                            refused += 1;
                            assert_eq!(errno(refusal), Some(libc::ENOSPC));
                        }
                    }
                }
            }
            let used = state(&disk).used;
            assert!(used <= limit);
            assert_eq!(used, written.len() as u64 * BLOCK);
        }
    }
    assert!(refused > 100 && made > 100, "{refused} {made}");
}

/// A flush needs no space, nor does a durable write of a block that has some: the map is not
/// written.
#[test]
fn a_full_folder_fails_new_blocks_only() {
    if !needs::root() {
        return;
    }
    let base = numbered_file(SIZE);
    let mount = Mount::new("tmpfs", "size=1M");
    let disk = open(base.path(), &EphemeralPlace::Folder(mount.path().into()), None);
    let mut rig = Rig::new(&disk);
    let mut at = 0;
    while write(&mut rig, at, BLOCK, 7).is_none() {
        at += BLOCK;
    }
    assert!(at > 0 && at <= MIB, "{at}");
    assert_eq!(write(&mut rig, 2 * MIB, 64 * KIB, 7), Some(libc::ENOSPC));
    assert_eq!(state(&disk), EphemeralState { used: at, limit: None, refused: 0 });
    rig.fill(0, BLOCK, 8, Durability::Durable).unwrap();
    rig.flush().unwrap();
    disk.sync().unwrap();
    assert_eq!(rig.read(0, BLOCK).unwrap(), [8; 4096]);
}

#[test]
fn an_ephemeral_disk_has_no_snapshot() {
    let base = numbered_file(MIB);
    let disk = open(base.path(), &EphemeralPlace::Memory, None);
    let members = [(&disk, "base.a".into())];
    let refused = block::snapshot(&members, Duration::from_secs(5)).unwrap_err().to_string();
    assert!(refused.contains("the disk over it is ephemeral"), "{refused}");
    assert!(Rig::new(&disk).read(0, MIB).unwrap() == numbered(0, MIB));
}

/// A reset of the guest's driver drops the engines, with requests in flight.
#[test]
fn a_reset_gives_back_the_blocks_of_its_requests() {
    let base = numbered_file(SIZE);
    let disk = open(base.path(), &EphemeralPlace::Memory, Some(256 * BLOCK));
    for _ in 0..10 {
        let mut memory = Memory::filled(7, MIB);
        let mut rig = Rig::new(&disk);
        for (tag, at) in [(0, 0), (1, 512)] {
            let segment = memory.segment(0, 1 << 20);
            rig.push(tag, common::write(at, Durability::Volatile), vec![segment]);
        }
        rig.submit();
        drop(rig);
    }
    assert!(state(&disk).used <= 256 * BLOCK);
    let mut rig = Rig::new(&disk);
    assert_eq!(write(&mut rig, 0, MIB, 8), None);
    assert_eq!(state(&disk).used, 256 * BLOCK);
}
