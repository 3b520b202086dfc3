//! File systems and databases of this machine, on a recorded loop device, and a raw one. What they
//! promise holds in the states that a power cut can leave, unless a barrier was taken from them.
//! `make crash` explores more of these states.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crash_tests::{Exploration, Limits, explorations};
use fixtures::needs;

/// Held by each test: a checker of the host ends the orphans of the process.
static ONE: Mutex<()> = Mutex::new(());

/// Explores some states of each exploration of this kind.
#[track_caller]
fn explore(kind: &str) {
    if !needs::root() {
        return;
    }
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let limits = Limits { time: Duration::from_secs(60), states: Some(25), seed: 0 };
    let mut chosen = explorations();
    chosen.retain(|one| one.name().starts_with(kind));
    assert!(chosen.iter().any(|one| !one.is_control()), "{kind}");
    // XFS has no option to take its barriers away.
    assert!(chosen.iter().any(Exploration::is_control) || kind == "xfs", "{kind}");
    for exploration in chosen {
        let (judgement, outcome) = exploration.run(limits).unwrap();
        println!("{}: {outcome:?}", exploration.name());
        assert!(!judgement.is_bad(), "{}: {judgement}: {outcome:?}", exploration.name());
        // A check of XFS takes seconds on a busy machine.
        assert!(outcome.checks > 5 || exploration.is_control(), "{outcome:?}");
    }
}

#[test]
fn synced_files_survive_on_ext4() {
    explore("ext4/files");
}

#[test]
fn synced_files_survive_on_xfs() {
    explore("xfs");
}

#[test]
fn synced_files_survive_on_btrfs() {
    explore("btrfs");
}

#[test]
fn committed_rows_survive_in_sqlite() {
    explore("ext4/sqlite");
}

#[test]
fn committed_rows_survive_in_postgres() {
    explore("ext4/postgres");
}

#[test]
fn committed_entries_survive_in_lmdb() {
    explore("ext4/lmdb");
}

#[test]
fn flushed_records_survive_on_a_raw_disk() {
    explore("raw/pattern");
}
