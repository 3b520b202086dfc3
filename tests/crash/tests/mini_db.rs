//! Each planted fault of the small database is found, with few checks and few lost writes, and the
//! database without one withstands each power cut.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crash::{
    Atomicity, CheckError, CheckedDisk, Checker, ExploreOptions, Failure, Outcome, Recording,
    SearchEnd, Verdict, explore,
};
use crash_tests::mini_db::{Fault, recover, run};
use crash_tests::record_in_memory;
use tempfile::TempDir;

const TRANSACTIONS: u64 = 8;

/// Recovery as a check.
struct Recovery(Option<Fault>);

impl Checker for Recovery {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        Ok(match recover(&*disk, self.0) {
            Ok(()) => Verdict::Passed,
            Err(output) => Verdict::Failed(Failure { end: "exit status 1".into(), output }),
        })
    }
}

fn record(fault: Option<Fault>) -> (TempDir, PathBuf, PathBuf) {
    let folder = TempDir::new_in(fixtures::scratch()).unwrap();
    let [base, log] = ["base.img", "disk.log"].map(|name| folder.path().join(name));
    record_in_memory(&base, &log, |device| run(device, TRANSACTIONS, fault)).unwrap();
    (folder, base, log)
}

fn outcome(fault: Option<Fault>, options: &ExploreOptions) -> Outcome {
    let (_folder, base, log) = record(fault);
    let recording = Recording::open(&log, &base).unwrap();
    explore(&recording, options, &Recovery(fault), &AtomicBool::new(false), &|_| {}).unwrap()
}

#[test]
fn the_database_withstands_each_power_cut() {
    for atomicity in [Atomicity::Sector, Atomicity::Block, Atomicity::Whole] {
        let options =
            ExploreOptions { atomicity, max_lost: 2, jobs: 2, ..ExploreOptions::default() };
        let outcome = outcome(None, &options);
        println!("{atomicity:?}: {outcome:?}");
        assert_eq!(outcome.end, SearchEnd::Complete, "{outcome:?}");
        assert!(outcome.points > 10 && outcome.checks > 100, "{outcome:?}");
    }
}

/// The check of a database that does no harm to a disk without flushes would check nothing.
#[test]
fn a_disk_that_ignores_flushes_is_caught() {
    let (_folder, base, log) = record(None);
    let recording = Recording::open(&log, &base).unwrap().without_flushes().unwrap();
    let stop = AtomicBool::new(false);
    let options = ExploreOptions::default();
    let outcome = explore(&recording, &options, &Recovery(None), &stop, &|_| {}).unwrap();
    assert_eq!(outcome.end, SearchEnd::Failure, "{outcome:?}");
}

#[test]
fn each_fault_is_found() {
    let (mut searched, mut sampled) = (0, 0);
    for fault in Fault::ALL {
        let found = outcome(Some(fault), &ExploreOptions::default());
        let [state] = found.failures.as_slice() else { panic!("{fault:?}: {found:?}") };
        let plain = ExploreOptions {
            max_lost: 0,
            samples: 1_000_000,
            pruning: false,
            states: Some(100_000),
            ..ExploreOptions::default()
        };
        let plain = outcome(Some(fault), &plain);
        println!(
            "{fault:?}: {} after {} checks ({} to reduce it), {} lost: {}; by samples {} ({:?})",
            state.name,
            found.checks,
            found.repeated_checks,
            state.lost,
            state.failure.output,
            plain.checks - plain.repeated_checks,
            plain.end,
        );
        assert!(state.lost <= 5, "{fault:?}: {state:?}");
        searched += found.checks - found.repeated_checks;
        sampled += plain.checks - plain.repeated_checks;
    }
    println!("{searched} checks, {sampled} by samples");
}
