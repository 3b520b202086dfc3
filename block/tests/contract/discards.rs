//! Discards, and the space that they free on the host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::Durability::{Durable, Volatile};
use block::{ByteOffset, CacheMode, DetectZeroes, DiscardStats, DiskOptions, Operation};

use crate::common::{KIB, MIB, Memory, Rig, discard, numbered, numbered_file, write, zero};
use crate::contract::{open, open_with, options};
use fixtures::host::Loop;
use fixtures::needs;

/// Bytes that are allocated to a file.
fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn discards_of_parts_of_a_granule_are_merged() {
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        assert_eq!(disk.geometry().discard.unwrap().granularity, 4096);
        let mut rig = Rig::new(disk.as_ref());
        let before = allocated(file.path());
        // In descending order, the last one durable.
        for (tag, sector) in (8..16).rev().enumerate() {
            let durability = if tag == 7 { Durable } else { Volatile };
            rig.push(u16::try_from(tag).unwrap(), discard(sector * 512, 512, durability), vec![]);
        }
        rig.complete_all(8);
        let all = DiscardStats { requested: 4 * KIB, merged: 4 * KIB, freed: 4 * KIB, skipped: 0 };
        assert_eq!(disk.status().discards, all, "{mode}");
        assert_eq!(before - allocated(file.path()), 4 * KIB, "{mode}");
        assert_eq!(rig.read(0, 4 * KIB).unwrap(), numbered(0, 4 * KIB), "the granule before");
        assert_eq!(rig.read(8 * KIB, 4 * KIB).unwrap(), numbered(8 * KIB, 4 * KIB));
    }
}

/// The first of several merged discards frees the range of all of them.
#[test]
fn cancelling_a_merged_discard_cancels_no_other() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut one = Rig::new(disk.as_ref());
    // Requires claims from now on.
    let mut memory = Memory::filled(0, KIB);
    let compare = Operation::CompareAndWrite { at: ByteOffset(0), durability: Volatile };
    assert!(one.run(compare, memory.whole()).is_err(), "a miscompare");
    let mut two = Rig::new(disk.as_ref());
    let mut memory = Memory::filled(7, 4 * KIB);
    two.push(5, write(4 * KIB, Volatile), memory.whole());
    for tag in 1..3 {
        one.push(tag, discard((2 + 2 * u64::from(tag)) * KIB, 2 * KIB, Volatile), vec![]);
    }
    // The flush ends their delay; merged, they wait for the claim of the write.
    one.push(3, Operation::Flush, vec![]);
    assert!(one.cancel(1));
    two.complete().result.unwrap();
    let mut results: Vec<_> = (0..3).map(|_| one.complete()).collect();
    results.sort_by_key(|done| done.tag);
    let errnos = results.iter().map(|done| done.result.as_ref().err()?.raw_os_error());
    assert_eq!(errnos.collect::<Vec<_>>(), [Some(libc::ECANCELED), None, None]);
    assert_eq!(one.read(4 * KIB, 4 * KIB).unwrap(), [7; 4096], "no whole granule remains");
}

#[test]
fn a_partial_granule_without_neighbours_completes_and_keeps_its_data() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.run(discard(512, 2 * KIB, Volatile), vec![]).unwrap();
    rig.run(discard(512, 2 * KIB, Durable), vec![]).unwrap();
    assert_eq!(
        disk.status().discards,
        DiscardStats { requested: 4 * KIB, skipped: 4 * KIB, ..DiscardStats::default() }
    );
    assert_eq!(rig.read(0, 4 * KIB).unwrap(), numbered(0, 4 * KIB));
    // Completed by the drop of the engine while it is delayed.
    rig.push(1, discard(512, 512, Volatile), vec![]);
}

#[test]
fn only_the_ends_of_a_large_discard_are_skipped() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.run(discard(512, MIB - KIB, Volatile), vec![]).unwrap();
    let DiscardStats { requested, merged, freed, skipped } = disk.status().discards;
    assert_eq!((requested, merged), (MIB - KIB, 0));
    assert_eq!((freed, skipped), (MIB - 8 * KIB, 7 * KIB));
    assert_eq!(allocated(file.path()), 8 * KIB);
    rig.run(zero(0, MIB, true, Volatile), vec![]).unwrap();
    assert_eq!(
        disk.status().discards.freed,
        MIB - 8 * KIB + MIB,
        "zeroing with unmap is counted as well"
    );
}

/// The counter rises step by step, and reads complete between the steps.
#[test]
fn reads_complete_between_the_chunks_of_a_large_discard() {
    const SIZE: u64 = 64 << 30;
    let file = numbered_file(MIB);
    file.as_file().set_len(SIZE).unwrap();
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.push(9, discard(MIB, SIZE - MIB, Volatile), vec![]);
    let mut partly_freed = 0;
    let mut reads = 0;
    loop {
        let mut memory = Memory::filled(0, 4 * KIB);
        rig.push(1, crate::common::read(0), memory.whole());
        let first = rig.complete();
        first.result.unwrap();
        let freed = disk.status().discards.freed;
        partly_freed += usize::from(freed > 0 && freed < SIZE - MIB);
        if first.tag == 9 {
            assert_eq!(rig.complete().tag, 1);
            break;
        }
        reads += 1;
        assert_eq!(memory.bytes(), numbered(0, 4 * KIB));
    }
    assert!(partly_freed > 0 && reads > 0, "{partly_freed} samples in between, {reads} reads");
    assert_eq!(disk.status().discards.freed, SIZE - MIB);
}

#[test]
fn discards_of_parts_of_a_block_device_granule_are_merged() {
    if !needs::root() {
        return;
    }
    let file = numbered_file(4 * MIB);
    let device = Loop::new(file.path());
    let disk = open(&device.0, CacheMode::WriteBack);
    let granularity = u64::from(disk.geometry().discard.unwrap().granularity);
    assert_eq!(granularity, 4096);
    let before = allocated(file.path());
    let mut rig = Rig::new(disk.as_ref());
    for tag in 0..16 {
        rig.push(tag, discard(MIB + u64::from(tag) * 512, 512, Volatile), vec![]);
    }
    rig.complete_all(16);
    assert_eq!(before - allocated(file.path()), 2 * granularity);
    assert_eq!(disk.status().discards.merged, 2 * granularity);
    let space = disk
        .backing_space()
        .unwrap()
        .expect("the backing store of a loop device is that of its file");
    assert!(space.available > 0);
}

#[test]
fn discards_are_not_offered_if_they_are_ignored() {
    let file = numbered_file(MIB);
    let options = DiskOptions { discard: false, ..options(CacheMode::WriteBack) };
    let disk = open_with(file.path(), &options).unwrap();
    assert_eq!(disk.geometry().discard, None);
}

#[test]
fn detected_zeroes_free_space_only_with_unmap() {
    for (detect_zeroes, freed) in
        [(DetectZeroes::Off, 0), (DetectZeroes::On, 0), (DetectZeroes::Unmap, 64 * KIB)]
    {
        for mode in [CacheMode::WriteBack, CacheMode::None, CacheMode::WriteThrough] {
            let file = numbered_file(MIB);
            let options = DiskOptions { detect_zeroes, ..options(mode) };
            let disk = open_with(file.path(), &options).unwrap();
            let mut rig = Rig::new(disk.as_ref());
            let before = allocated(file.path());
            let durability = mode.write_durability();
            rig.fill(64 * KIB, 64 * KIB, 0, durability).unwrap();
            rig.flush().unwrap();
            assert_eq!(before - allocated(file.path()), freed, "{detect_zeroes} {mode}");
            assert_eq!(disk.status().discards.freed, freed, "{detect_zeroes} {mode}");
            assert!(rig.read(64 * KIB, 64 * KIB).unwrap().iter().all(|byte| *byte == 0));
            assert_eq!(rig.read(0, 64 * KIB).unwrap(), numbered(0, 64 * KIB));
        }
    }
}

/// At any position, whatever the alignment and number of segments.
#[test]
fn one_nonzero_byte_makes_a_block_data() {
    let file = numbered_file(MIB);
    let options =
        DiskOptions { detect_zeroes: DetectZeroes::Unmap, ..options(CacheMode::WriteBack) };
    let disk = open_with(file.path(), &options).unwrap();
    let mut rig = Rig::new(disk.as_ref());
    // Aligned and unaligned, in one segment and in three.
    for (start, cuts) in [(0, vec![4096]), (3, vec![4096]), (5, vec![512, 7, 4096 - 519])] {
        for at in [0, 1, 7, 8, 511, 518, 519, 2048, 4088, 4095] {
            let mut memory = Memory::filled(0, 8 * KIB);
            memory.set(start + at, 1);
            let mut from = start;
            let segments = cuts.iter().map(|len| {
                from += len;
                memory.segment(from - len, *len)
            });
            let segments = segments.collect();
            rig.run(write(4 * KIB, Volatile), segments).unwrap();
            let mut expected = vec![0; 4096];
            expected[at] = 1;
            assert_eq!(rig.read(4 * KIB, 4 * KIB).unwrap(), expected, "byte {at} from {start}");
        }
    }
    assert_eq!(disk.status().discards, DiscardStats::default());
}
