//! Direct transfers of memory that changes meanwhile. Needs root.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use block::{CacheMode, DiskOptions, Durability, EngineKind, RawFile, StableCopyMode};
use fixtures::host::Loop;
use fixtures::{Ext4, Formatted, needs};

use common::{DEPTH, MIB, Memory, Rig, read, write};

fn open(path: &Path, engine: EngineKind, stable_copies: StableCopyMode) -> RawFile {
    let options = DiskOptions { engine, stable_copies, ..DiskOptions::new(CacheMode::None) };
    RawFile::open(path, &options).unwrap()
}

/// Writes to a store that hangs, changes the memory of the writes, and lets the store go on.
/// Returns the bytes that were stored, a byte for each of two writes: one of a segment, one of two.
fn bytes_stored(engine: EngineKind, stable_copies: StableCopyMode) -> [u8; 2] {
    let mut store = Ext4::new(4096);
    let image = store.file(MIB, 0);
    let device = Loop::new(&image);
    let disk = open(&device.0, engine, stable_copies);
    let mut rig = Rig::new(&disk);
    let mut memory = [Memory::filled(1, 8192), Memory::filled(1, 8192)];
    store.freeze();
    let [one, two] = &mut memory;
    rig.push(0, write(0, Durability::Volatile), one.whole());
    let segments = vec![two.segment(0, 4096), two.segment(4096, 4096)];
    rig.push(1, write(8192, Durability::Durable), segments);
    rig.submit();
    // The kernel has the memory, and nothing is stored yet.
    thread::sleep(Duration::from_millis(300));
    for memory in &mut memory {
        (0..8192).for_each(|at| memory.set(at, 2));
    }
    store.thaw();
    rig.complete_all(2);
    [0, 8192].map(|at| {
        let stored = rig.read(at, 8192).unwrap();
        assert!(stored.iter().all(|byte| *byte == stored[0]), "at {at}");
        stored[0]
    })
}

#[test]
fn a_copied_write_stores_the_data_of_its_submission() {
    if !needs::root() {
        return;
    }
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        assert_eq!(bytes_stored(engine, StableCopyMode::On), [1, 1], "{engine}");
        assert_eq!(
            bytes_stored(engine, StableCopyMode::Off),
            [2, 2],
            "{engine}: the test is blind"
        );
    }
}

/// Reads from a btrfs for a while, and writes to the memory of the reads meanwhile, as a guest may.
/// Returns how many reads failed, of how many.
fn failed_reads(stable_copies: StableCopyMode) -> (usize, usize) {
    let store = Formatted::new(&["mkfs.btrfs", "-q"], "noatime");
    let image = store.file("disk");
    Formatted::fill(&image, 4 << 20);
    let disk = open(&image, EngineKind::Auto, stable_copies);
    let mut rig = Rig::new(&disk);
    let mut memory: Vec<_> = (0..DEPTH).map(|_| Memory::filled(0, 65536)).collect();
    let segments: Vec<_> = memory.iter_mut().map(Memory::whole).collect();
    let guest: Vec<_> =
        segments.iter().map(|segments| segments[0].base().expose_provenance()).collect();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0_u8;
            while !is_done.load(Ordering::Relaxed) {
                for base in &guest {
                    let byte = std::ptr::with_exposed_provenance_mut::<u8>(base + 100);
                    value = value.wrapping_add(1);
                    // SAFETY: within the memory, which outlives the scope.
                    unsafe { byte.write_volatile(value) };
                }
            }
        });
        let (start, mut failed, mut count) = (Instant::now(), 0, 0);
        while start.elapsed() < Duration::from_secs(2) {
            for (tag, segments) in (0..DEPTH).zip(&segments) {
                rig.push(tag, read(u64::from(tag) * 65536), segments.clone());
            }
            rig.submit();
            for _ in 0..DEPTH {
                failed += usize::from(rig.complete().result.is_err());
                count += 1;
            }
        }
        is_done.store(true, Ordering::Relaxed);
        (failed, count)
    })
}

#[test]
fn copied_reads_of_a_btrfs_never_fail_their_checksums() {
    if !needs::root() {
        return;
    }
    let (failed, count) = failed_reads(StableCopyMode::On);
    println!("with copies: {failed} of {count} reads failed");
    assert_eq!(failed, 0, "of {count}");
    let (failed, count) = failed_reads(StableCopyMode::Off);
    println!("without copies: {failed} of {count} reads failed");
    assert_ne!(failed, 0, "of {count}: the test is blind");
}
