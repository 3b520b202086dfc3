//! Each planted fault of the small database is found, with few checks and few lost writes, and the
//! database without one withstands each power cut.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crash::{Atomicity, CheckedDisk, ExploreOptions, Outcome, Recording, SearchEnd, explore};
use crash_tests::mini_db::{Fault, Recovery, recover, run};
use crash_tests::{PlainSamples, record_in_memory};
use tempfile::TempDir;

const TRANSACTIONS: u64 = 8;
/// With a fault in one lap of ten.
const FAULTY_TRANSACTIONS: u64 = 30;

fn record(transactions: u64, fault: Option<Fault>) -> (TempDir, PathBuf, PathBuf) {
    let folder = TempDir::new_in(fixtures::scratch()).unwrap();
    let [base, log] = ["base.img", "disk.log"].map(|name| folder.path().join(name));
    record_in_memory(&base, &log, |device| run(device, transactions, fault)).unwrap();
    (folder, base, log)
}

/// The outcome of a database without a fault.
fn outcome(options: &ExploreOptions) -> Outcome {
    let (_folder, base, log) = record(TRANSACTIONS, None);
    let recording = Recording::open(&log, &base).unwrap();
    explore(&recording, options, &Recovery(None), &AtomicBool::new(false), &|_| {}).unwrap()
}

#[test]
fn the_database_withstands_each_power_cut() {
    for atomicity in [Atomicity::Sector, Atomicity::Block, Atomicity::Whole] {
        // Torn sectors make many states of each loss.
        let max_lost = if atomicity == Atomicity::Sector { 1 } else { 2 };
        let options = ExploreOptions { atomicity, max_lost, jobs: 2, ..ExploreOptions::default() };
        let outcome = outcome(&options);
        println!("{atomicity:?}: {outcome:?}");
        assert_eq!(outcome.end, SearchEnd::Complete, "{outcome:?}");
        assert!(outcome.points > 10 && outcome.checks > 100, "{outcome:?}");
    }
}

/// The check of a database that does no harm to a disk without flushes would check nothing.
#[test]
fn a_disk_that_ignores_flushes_is_caught() {
    let (_folder, base, log) = record(TRANSACTIONS, None);
    let recording = Recording::open(&log, &base).unwrap().without_flushes().unwrap();
    let stop = AtomicBool::new(false);
    let options = ExploreOptions::default();
    let outcome = explore(&recording, &options, &Recovery(None), &stop, &|_| {}).unwrap();
    assert_eq!(outcome.end, SearchEnd::Failure, "{outcome:?}");
}

/// Finds a fault in a database that has it in one lap of ten. Returns the recording, and the number
/// of checks without those that reduced the failure.
fn found(fault: Fault) -> (TempDir, Recording, u64) {
    let (folder, base, log) = record(FAULTY_TRANSACTIONS, Some(fault));
    let recording = Recording::open(&log, &base).unwrap();
    let (options, stop) = (ExploreOptions::default(), AtomicBool::new(false));
    let checker = Recovery(Some(fault));
    let found = explore(&recording, &options, &checker, &stop, &|_| {}).unwrap();
    let [state] = found.failures.as_slice() else { panic!("{fault:?}: {found:?}") };
    assert!(state.lost <= 5, "{fault:?}: {state:?}");
    let searched = found.checks - found.repeated_checks;
    println!("{fault:?}: {searched} checks; {}: {}", state.name, state.failure.output);
    (folder, recording, searched)
}

#[test]
fn each_fault_is_found() {
    let (one, other) = Fault::ALL.split_at(Fault::ALL.len() / 2);
    let checks = |faults: &[Fault]| faults.iter().map(|fault| found(*fault).2).sum::<u64>();
    let all = std::thread::scope(|scope| {
        let first = scope.spawn(|| checks(one));
        checks(other) + first.join().unwrap()
    });
    println!("{all} checks for all");
}

/// `cargo test --release -p crash-tests --test mini_db -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn checks_and_samples_until_a_fault_is_found() {
    const MOST: u64 = 100_000;
    for fault in Fault::ALL {
        let (_folder, recording, searched) = found(fault);
        let passes = |disk: &dyn CheckedDisk| recover(disk, Some(fault)).is_ok();
        let mut sampled: Vec<u64> = (1..=5)
            .map(|seed| PlainSamples::new(&recording, seed).until_failure(MOST, passes))
            .collect();
        sampled.sort_unstable();
        println!("{fault:?}: {searched} checks, or a median of {} samples", sampled[2]);
    }
}
