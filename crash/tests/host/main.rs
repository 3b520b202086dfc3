//! Checks that are commands of the host, on a real FUSE mount, with real processes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed helper fails its test")]

mod disk;
mod files;
mod processes;

use std::sync::Arc;
use std::time::Duration;

use crash::host::{CheckOptions, HostChecker};
use crash::{CheckError, Checker, Verdict};

use self::disk::TestDisk;

/// A checker of `command`.
fn checker(command: &str) -> HostChecker {
    checker_with(command, |_| {})
}

fn checker_with(command: &str, change: impl FnOnce(&mut CheckOptions)) -> HostChecker {
    let limit = Duration::from_secs(30);
    let mut options = CheckOptions { command: command.into(), limit, uses_loop: false, threads: 2 };
    change(&mut options);
    HostChecker::new(options).unwrap()
}

fn check(checker: &HostChecker, disk: &Arc<TestDisk>) -> Result<Verdict, CheckError> {
    let disk: Arc<TestDisk> = Arc::clone(disk);
    checker.check(disk)
}

/// The end and the output of a check that fails.
#[track_caller]
fn failure(checker: &HostChecker, disk: &Arc<TestDisk>) -> (String, String) {
    match check(checker, disk).unwrap() {
        Verdict::Failed(failure) => (failure.end, failure.output),
        Verdict::Passed => panic!("the check passed"),
    }
}

#[track_caller]
fn passes(checker: &HostChecker, disk: &Arc<TestDisk>) {
    assert_eq!(check(checker, disk).unwrap(), Verdict::Passed);
}
