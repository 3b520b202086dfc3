//! File systems and a database of this machine, on a recorded loop device. What they promise holds
//! in all states that a power cut can leave, unless a barrier was taken from them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use crash::host::{CheckOptions, HostChecker};
use crash::{Atomicity, ExploreOptions, Outcome, Recording, SearchEnd, explore};
use crash_tests::{Recorded, Workload};
use fixtures::needs;

/// Held by each test: a checker of the host ends the orphans of the process.
static ONE: Mutex<()> = Mutex::new(());

const EXT4: &str = "mkfs.ext4 -q -F \"$0\"";
/// Waits for the other tests; `None` without the rights for these.
fn turn() -> Option<MutexGuard<'static, ()>> {
    needs::root().then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

const EXT4_BYTES: u64 = 64 << 20;

fn record(size: u64, format: &str, workload: impl FnOnce(&Workload) -> Result<()>) -> Recorded {
    Recorded::run(size, format, workload).unwrap()
}

/// Explores for a quarter of a minute at most.
fn explored(recorded: &Recorded, check: &str) -> Outcome {
    let checks = CheckOptions {
        command: OsString::from(check),
        limit: Duration::from_secs(60),
        uses_loop: false,
        threads: 2,
    };
    let options = ExploreOptions {
        atomicity: Atomicity::Block,
        max_lost: 2,
        samples: 200,
        jobs: 2,
        time: Some(Duration::from_secs(15)),
        ..ExploreOptions::default()
    };
    let recording = Recording::open(&recorded.log(), &recorded.base()).unwrap();
    let checker = HostChecker::new(checks).unwrap();
    let outcome = explore(&recording, &options, &checker, &AtomicBool::new(false), &|_| {});
    let outcome = outcome.unwrap();
    println!("{check}: {outcome:?}");
    outcome
}

#[track_caller]
fn assert_withstands(outcome: &Outcome) {
    assert!(outcome.failures.is_empty() && outcome.flaky.is_empty(), "{outcome:?}");
    assert!(matches!(outcome.end, SearchEnd::Complete | SearchEnd::Time), "{outcome:?}");
    assert!(outcome.checks > 20, "{outcome:?}");
}

#[track_caller]
fn assert_caught(outcome: &Outcome, said: &str) {
    let [state, ..] = outcome.failures.as_slice() else { panic!("{outcome:?}") };
    assert_eq!(outcome.end, SearchEnd::Failure, "{outcome:?}");
    assert!(state.lost <= 5 && state.failure.output.contains(said), "{outcome:?}");
}

/// Files are written and synced, which marks say, then moved and removed.
fn files(disk: &Workload) -> Result<()> {
    for number in 0..6 {
        let file = format!("$MNT/f{number}");
        disk.sh(&format!("head -c {} /dev/urandom >{file}; sync {file}", number * 3000 + 100))?;
        let sum = disk.sh(&format!("sha256sum <{file}"))?;
        disk.mark(&format!("synced {} f{number}", sum.split(' ').next().unwrap_or_default()))?;
    }
    disk.sh("mkdir $MNT/d; echo x >$MNT/d/g; mv $MNT/d/g $MNT/h; sync; umount $MNT").map(drop)
}

fn files_on(size: u64, format: &str, mount: &str) -> Recorded {
    record(size, format, |disk| {
        disk.sh(&format!("mount {mount} $DEV $MNT"))?;
        files(disk)
    })
}

#[test]
fn ext4_withstands_power_cuts() {
    if let Some(_turn) = turn() {
        let recorded = files_on(EXT4_BYTES, EXT4, "");
        assert_withstands(&explored(&recorded, "check-ext4 && check-files"));
    }
}

#[test]
fn ext4_without_barriers_loses_synced_files() {
    if let Some(_turn) = turn() {
        let recorded = files_on(EXT4_BYTES, EXT4, "-o barrier=0");
        assert_caught(&explored(&recorded, "check-ext4 && check-files"), "synced, but missing");
    }
}

#[test]
fn xfs_withstands_power_cuts() {
    if let Some(_turn) = turn() {
        let recorded = files_on(320 << 20, "mkfs.xfs -q \"$0\"", "");
        assert_withstands(&explored(&recorded, "check-xfs && check-files"));
    }
}

#[test]
fn btrfs_withstands_power_cuts() {
    if let Some(_turn) = turn() {
        let recorded = files_on(128 << 20, "mkfs.btrfs -q \"$0\"", "");
        assert_withstands(&explored(&recorded, "check-btrfs && check-files"));
    }
}

#[test]
fn btrfs_without_barriers_is_damaged() {
    if let Some(_turn) = turn() {
        let recorded = files_on(128 << 20, "mkfs.btrfs -q \"$0\"", "-o nobarrier");
        assert_caught(&explored(&recorded, "check-btrfs && check-files"), "");
    }
}

/// Rows are inserted, and noted when SQLite says that they are committed.
fn sqlite(pragmas: &str) -> Recorded {
    record(EXT4_BYTES, EXT4, |disk| {
        disk.sh("mount $DEV $MNT")?;
        let sql = |sql: &str| disk.sh(&format!("sqlite3 $MNT/db '{pragmas} {sql}' >$MNT/../said"));
        sql("create table t (n integer primary key, text text);")?;
        disk.sh("sync")?;
        for number in 1..=6 {
            sql(&format!("insert into t values ({number}, hex(randomblob(900)));"))?;
            disk.mark(&format!("committed {number}"))?;
        }
        disk.sh("umount $MNT").map(drop)
    })
}

const SQLITE: &str = "check-ext4 && check-sqlite db \"select count(*) from t\"";

#[test]
fn sqlite_withstands_power_cuts() {
    if let Some(_turn) = turn() {
        assert_withstands(&explored(&sqlite("pragma synchronous=extra;"), SQLITE));
        assert_withstands(&explored(
            &sqlite("pragma journal_mode=wal; pragma synchronous=full;"),
            SQLITE,
        ));
    }
}

#[test]
fn sqlite_that_does_not_sync_loses_rows() {
    if let Some(_turn) = turn() {
        assert_caught(&explored(&sqlite("pragma synchronous=off;"), SQLITE), "db: ");
    }
}
