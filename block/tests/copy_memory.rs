//! The memory of misaligned direct requests stays within the disk's budget. A process of its own,
//! because it measures its memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use block::{CacheMode, DiskOptions, RawFile};

use common::{DEPTH, KIB, MIB, Memory, Rig, numbered, numbered_file, read};

/// The peak of resident memory since the last reset, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * KIB
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
fn misaligned_requests_wait_for_memory_within_the_budget() {
    const LEN: u64 = 256 * KIB;
    const QUEUES: usize = 4;
    let file = numbered_file(32 * MIB);
    let options = DiskOptions { copy_memory: MIB, ..DiskOptions::new(CacheMode::None) };
    let disk = RawFile::open(file.path(), &options).unwrap();
    let mut rigs: Vec<Rig> = (0..QUEUES).map(|_| Rig::new(&disk)).collect();
    // One byte more, so that the data can start at an odd address.
    let blank = || (0..DEPTH).map(|_| Memory::filled(1, LEN + 1)).collect::<Vec<_>>();
    let mut memory: Vec<Vec<Memory>> = (0..QUEUES).map(|_| blank()).collect();
    reset_peak();
    let before = peak();
    for (rig, memory) in rigs.iter_mut().zip(&mut memory) {
        for (tag, memory) in (0..DEPTH).zip(memory) {
            let segment = memory.segment(1, usize::try_from(LEN).unwrap());
            rig.push(tag, read(u64::from(tag) * LEN), vec![segment]);
        }
        rig.submit();
    }
    for rig in &mut rigs {
        rig.complete_all(DEPTH);
    }
    let taken = peak() - before;
    for memory in &memory {
        for (tag, memory) in (0..DEPTH).zip(memory) {
            assert!(memory.bytes()[1..] == numbered(u64::from(tag) * LEN, LEN), "request {tag}");
        }
    }
    let unbounded = u64::from(DEPTH) * QUEUES as u64 * LEN;
    assert!(taken < 4 * MIB, "{taken} bytes; without a bound {unbounded}");
}
