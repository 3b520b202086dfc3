//! Guests with blocks of 512 bytes on hosts whose direct I/O needs 4096: a loop device with large
//! sectors, and a file system on one. Needs root.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use block::Durability::{Durable, Volatile};
use block::{Backend, CacheMode, DiskOptions, EngineKind, RawFile};
use tempfile::{NamedTempFile, TempDir};

use common::{
    DEPTH, KIB, MIB, Memory, Rig, discard, numbered, numbered_file, read, scratch, write, zero,
};
use fixtures::host::{Loop, sh};
use fixtures::needs;

const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

fn options(engine: EngineKind) -> DiskOptions {
    DiskOptions { engine, block_size: Some(512), ..DiskOptions::new(CacheMode::None) }
}

fn device(size: u64) -> (NamedTempFile, Loop) {
    let file = numbered_file(size);
    let device = Loop::with_large_sectors(file.path());
    (file, device)
}

/// A file system on a device with large sectors.
struct Mounted(TempDir, #[expect(dead_code, reason = "detached when dropped")] Loop);

impl Mounted {
    fn new() -> Self {
        let image = NamedTempFile::new_in(scratch()).unwrap();
        image.as_file().set_len(64 * MIB).unwrap();
        let device = Loop::with_large_sectors(image.path());
        let dir = TempDir::new_in(scratch()).unwrap();
        let (from, to) = (device.0.to_str().unwrap(), dir.path().to_str().unwrap());
        sh("mkfs.ext4", &["-q", "-O", "^has_journal", from]);
        sh("mount", &[from, to]);
        Self(dir, device)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        sh("umount", &[self.0.path().to_str().unwrap()]);
    }
}

#[test]
fn the_logical_block_is_configurable_and_the_physical_block_is_not() {
    if !needs::root() {
        return;
    }
    let (_file, device) = device(MIB);
    let block = |options: &DiskOptions| {
        let geometry = RawFile::open(&device.0, options).unwrap().geometry();
        (geometry.logical_block, geometry.physical_block)
    };
    for mode in [CacheMode::None, CacheMode::WriteBack] {
        assert_eq!(block(&DiskOptions::new(mode)), (4096, 4096));
        let small = DiskOptions { block_size: Some(512), ..DiskOptions::new(mode) };
        assert_eq!(block(&small), (512, 4096));
    }
}

#[test]
fn the_logical_block_of_a_file_does_not_depend_on_direct_io() {
    if !needs::root() {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.0.path().join("disk");
    std::fs::write(&path, numbered(0, MIB)).unwrap();
    let disk = RawFile::open(&path, &DiskOptions::new(CacheMode::None)).unwrap();
    assert_eq!((disk.geometry().logical_block, disk.geometry().physical_block), (512, 4096));
    drop(disk);
    for engine in ENGINES {
        exercise(&path, engine);
    }

    std::fs::File::options().write(true).open(&path).unwrap().set_len(MIB + 512).unwrap();
    let refusal = RawFile::open(&path, &options(EngineKind::Auto)).unwrap_err().to_string();
    assert!(refusal.contains("not a multiple of 4096 bytes"), "{refusal}");
}

#[test]
fn a_device_with_large_sectors_serves_small_blocks() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (_file, device) = device(MIB);
        exercise(&device.0, engine);
    }
}

/// Requests of parts of blocks. Each is followed by a check of the whole disk.
fn exercise(path: &Path, engine: EngineKind) {
    let disk = RawFile::open(path, &options(engine)).unwrap();
    let mut rig = Rig::new(&disk);
    let mut expected = rig.read(0, MIB).unwrap();
    let mut check = |rig: &mut Rig, start: u64, len: u64, byte: Option<u8>| {
        let bytes = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
        match byte {
            Some(byte) => expected[bytes].fill(byte),
            None => {
                let found = rig.read(start, len).unwrap();
                assert!(found.iter().zip(&expected[bytes.clone()]).all(|(f, e)| f == e || *f == 0));
                expected[bytes].copy_from_slice(&found);
            }
        }
        assert!(rig.read(0, MIB).unwrap() == expected, "{engine}: {start}, {len}");
    };
    assert_eq!(rig.read(1536, 1024).unwrap().len(), 1024);
    let spans = [(512, 512), (3584, 1024), (4096, 4096), (512, 8192), (300 * KIB + 512, 400 * KIB)];
    for (byte, (start, len)) in (100..).zip(spans) {
        for durability in [Volatile, Durable] {
            rig.fill(start, len, byte, durability).unwrap();
            check(&mut rig, start, len, Some(byte));
        }
        // Unaligned memory.
        let mut memory = Memory::filled(byte + 20, len + 4096);
        let cut = usize::try_from(len / 2).unwrap() + 1;
        let rest = usize::try_from(len).unwrap() - cut;
        let segments = vec![memory.segment(3, cut), memory.segment(3 + cut, rest)];
        rig.run(write(start, Volatile), segments).unwrap();
        check(&mut rig, start, len, Some(byte + 20));
        for unmap in [false, true] {
            rig.fill(start, len, byte, Volatile).unwrap();
            rig.run(zero(start, len, unmap, Durable), vec![]).unwrap();
            check(&mut rig, start, len, Some(0));
        }
        rig.fill(start, len, byte, Volatile).unwrap();
        check(&mut rig, start, len, Some(byte));
        rig.run(discard(start, len, Durable), vec![]).unwrap();
        check(&mut rig, start, len, None);
    }
    let end = MIB - 512;
    rig.fill(end, 512, 9, Volatile).unwrap();
    check(&mut rig, end, 512, Some(9));
}

#[test]
fn the_page_cache_serves_small_blocks_of_a_device_with_large_sectors() {
    if !needs::root() {
        return;
    }
    let (_file, device) = device(MIB);
    let options = DiskOptions { cache: CacheMode::WriteBack, ..options(EngineKind::Auto) };
    let disk = RawFile::open(&device.0, &options).unwrap();
    let mut rig = Rig::new(&disk);
    for unmap in [false, true] {
        rig.fill(0, 64 * KIB, 7, Volatile).unwrap();
        rig.run(zero(512, 32 * KIB, unmap, Durable), vec![]).unwrap();
        rig.run(zero(48 * KIB + 512, 512, unmap, Durable), vec![]).unwrap();
        rig.run(discard(60 * KIB + 512, 512, Durable), vec![]).unwrap();
        let zeroed = |at: u64| {
            (512..512 + 32 * KIB).contains(&at) || (48 * KIB + 512..49 * KIB).contains(&at)
        };
        let expected: Vec<u8> = (0..64 * KIB).map(|at| if zeroed(at) { 0 } else { 7 }).collect();
        assert!(rig.read(0, 64 * KIB).unwrap() == expected);
    }
}

/// The blocks hold sectors of all engines; each engine writes its own repeatedly.
#[test]
fn writes_of_several_queues_to_one_block_are_not_lost() {
    const SECTORS: u64 = 32;
    const QUEUES: u64 = 4;
    const ROUNDS: u64 = 150;
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (_file, device) = device(MIB);
        let disk = RawFile::open(&device.0, &options(engine)).unwrap();
        let lost = AtomicU64::new(0);
        let queue = |queue: u64| {
            let mut rig = Rig::new(&disk);
            let mine: Vec<u64> = (0..SECTORS).filter(|sector| sector % QUEUES == queue).collect();
            for round in 0..ROUNDS {
                let byte = u8::try_from(round % 255).unwrap() + 1;
                let mut data: Vec<_> = mine.iter().map(|_| Memory::filled(byte, 512)).collect();
                for (tag, (sector, data)) in (0..DEPTH).zip(mine.iter().zip(&mut data)) {
                    // Zeroing changes the same blocks.
                    let op = match (round + sector) % 7 {
                        0 => zero(sector * 512, 512, true, Volatile),
                        _ => write(sector * 512, Volatile),
                    };
                    rig.push(
                        tag,
                        op,
                        if round % 7 == (7 - sector % 7) % 7 { vec![] } else { data.whole() },
                    );
                }
                for _ in &mine {
                    rig.complete().result.unwrap();
                }
                for sector in &mine {
                    let expected = if (round + sector) % 7 == 0 { 0 } else { byte };
                    let mut found = Memory::filled(0xee, 512);
                    rig.run(read(sector * 512), found.whole()).unwrap();
                    if found.bytes() != vec![expected; 512] {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for number in 0..QUEUES {
                let queue = &queue;
                scope.spawn(move || queue(number));
            }
        });
        assert_eq!(lost.into_inner(), 0, "{engine}: sectors without their last write");
    }
}

#[test]
fn dropping_an_engine_releases_its_claims() {
    if !needs::root() {
        return;
    }
    let (_file, device) = device(MIB);
    let disk = RawFile::open(&device.0, &options(EngineKind::Auto)).unwrap();
    let mut rig = Rig::new(&disk);
    let mut data: Vec<_> = (0..8).map(|_| Memory::filled(7, 512)).collect();
    for (tag, data) in (0..).zip(&mut data) {
        rig.push(tag, write(u64::from(tag) * 512, Volatile), data.whole());
    }
    drop(rig);
    Rig::new(&disk).fill(0, 4096, 8, Volatile).unwrap();
}
