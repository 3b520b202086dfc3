//! Discards, which no flush makes durable, and their cost where there are many.

use std::sync::atomic::AtomicBool;

use block::LogKind;
use crash::{Atomicity, CheckedDisk, ExploreOptions, Outcome, SearchEnd, explore};

use crate::log_files::{SECTOR, TestLog, TestRequest, content};
use crate::program::{Check, verdict};

impl TestLog {
    /// Adds a discard or a zeroing of a block, issued when all before it had completed.
    fn clear(&mut self, kind: LogKind, block: u64) -> u64 {
        let issued_after = self.len();
        let data = vec![[0; SECTOR]; 8];
        self.add(TestRequest { kind, sector: block * 8, data, issued_after, fua: false, errno: 0 })
    }

    fn write_block(&mut self, block: u64, value: u64) {
        let sectors = block * 8..block * 8 + 8;
        self.write(block * 8, sectors.map(|sector| content(value, sector)).collect(), false);
    }
}

/// Whether a block has zeroes.
fn is_clear(disk: &dyn CheckedDisk, block: u64) -> bool {
    let mut bytes = [0; 4096];
    disk.read(block * 4096, &mut bytes).unwrap();
    bytes == [0; 4096]
}

fn explored(log: &TestLog, check: impl Fn(&dyn CheckedDisk) -> bool + Sync) -> Outcome {
    let options = ExploreOptions { samples: 50, ..ExploreOptions::default() };
    explored_with(&options, log, check)
}

fn explored_with(
    options: &ExploreOptions,
    log: &TestLog,
    check: impl Fn(&dyn CheckedDisk) -> bool + Sync,
) -> Outcome {
    let (_folder, recording) = log.open();
    let checker = Check(|disk: &dyn CheckedDisk| Ok(verdict(check(disk))));
    explore(&recording, options, &checker, &AtomicBool::new(false), &|_| {}).unwrap()
}

/// After the mark "cleared", block 0 must have zeroes.
fn promises_zeroes(disk: &dyn CheckedDisk) -> bool {
    !disk.marks().contains("cleared") || is_clear(disk, 0)
}

fn cleared(kind: LogKind) -> TestLog {
    let mut log = TestLog::new(64);
    log.write_block(0, 7);
    log.flush();
    log.clear(kind, 0);
    log.flush();
    log.mark("cleared");
    log
}

#[test]
fn a_flushed_discard_may_leave_what_was_there_and_a_zeroing_may_not() {
    let outcome = explored(&cleared(LogKind::Discard), promises_zeroes);
    let state = &outcome.failures[0];
    assert_eq!((state.name.to_string().as_str(), state.lost), ("4-2", 1));
    let outcome = explored(&cleared(LogKind::Zero), promises_zeroes);
    assert!(outcome.is_complete() && outcome.failures.is_empty(), "{outcome:?}");
}

#[test]
fn a_write_over_a_discard_decides() {
    let mut log = cleared(LogKind::Discard);
    log.marks.clear();
    log.write_block(0, 8);
    log.flush();
    log.mark("rewritten");
    let is_new = |disk: &dyn CheckedDisk| {
        let mut sector = [0; SECTOR];
        disk.read(0, &mut sector).unwrap();
        !disk.marks().contains("rewritten") || sector == content(8, 0)
    };
    let outcome = explored(&log, is_new);
    assert!(outcome.is_complete() && outcome.failures.is_empty(), "{outcome:?}");
}

/// Discards of two blocks, and then flushes of others before the mark that promises zeroes.
#[test]
fn a_discard_of_long_ago_may_leave_what_was_there() {
    let mut log = TestLog::new(64);
    for block in 0..2 {
        log.clear(LogKind::Discard, block);
    }
    for block in 2..6 {
        log.write_block(block, 9);
        log.flush();
    }
    log.mark("cleared");
    let outcome = explored(&log, promises_zeroes);
    let state = &outcome.failures[0];
    assert_eq!((state.name.to_string().as_str(), state.lost), ("10-0", 1));
    assert_eq!(state.shrunk_from.as_ref().unwrap().to_string(), "10-discards");
    // With another write that must be lost as well.
    log.marks.clear();
    log.write_block(6, 9);
    log.mark("cleared");
    log.flush();
    let outcome = explored(&log, |disk| promises_zeroes(disk) || !is_new_at(disk, 6));
    assert_eq!(outcome.failures[0].name.to_string(), "12-0");
    let outcome = explored(&log, |disk| promises_zeroes(disk) || is_new_at(disk, 6));
    assert_eq!(outcome.failures[0].name.to_string(), "11-0-10");
}

fn is_new_at(disk: &dyn CheckedDisk, block: u64) -> bool {
    let mut sector = [0; SECTOR];
    disk.read(block * 4096, &mut sector).unwrap();
    sector == content(9, block * 8)
}

/// A disk whose blocks but a few were discarded one by one, in windows of 100, and 20 later windows
/// of four writes.
fn trimmed_disk(discards: u64) -> TestLog {
    let mut log = TestLog::new((discards + 8) * 8);
    for block in 0..discards {
        log.clear(LogKind::Discard, block + 8);
        if block % 100 == 99 {
            log.flush();
        }
    }
    for window in 0..20 {
        for block in 0..4 {
            log.write_block(block, window + 10);
        }
        log.flush();
    }
    log
}

fn whole_writes(max_lost: usize) -> ExploreOptions {
    let atomicity = Atomicity::Whole;
    ExploreOptions { atomicity, max_lost, samples: 50, ..ExploreOptions::default() }
}

#[test]
fn discards_that_no_check_reads_cost_nothing() {
    let reads_written = |disk: &dyn CheckedDisk| (0..4).all(|block| !is_clear(disk, block));
    let [none, many] = [0, 2000]
        .map(|discards| explored_with(&whole_writes(3), &trimmed_disk(discards), reads_written));
    println!("{} checks without discards, {} with: {:?}", none.checks, many.checks, many.elapsed);
    assert_eq!((none.end, many.end), (SearchEnd::Complete, SearchEnd::Complete));
    assert!(many.checks <= none.checks + 10, "{} and {}", none.checks, many.checks);
}

/// Each is lost alone when it is new, and with all others from then on.
#[test]
fn discards_that_a_check_reads_are_lost_together() {
    let outcome = |read: u64| {
        explored_with(&whole_writes(2), &trimmed_disk(200), move |disk| {
            for block in 8..8 + read {
                let _ = is_clear(disk, block);
            }
            (0..4).all(|block| !is_clear(disk, block))
        })
    };
    let [none, some] = [outcome(0), outcome(10)];
    println!("{} checks, {} that read discarded blocks", none.checks, some.checks);
    assert_eq!((none.end, some.end), (SearchEnd::Complete, SearchEnd::Complete));
    assert!(some.checks > none.checks && some.checks < 3 * none.checks + 100, "{}", some.checks);
}
