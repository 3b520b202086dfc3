//! The limits of an exploration, its order, and checks that misbehave.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use block::LogKind;
use crash::{
    Atomicity, CheckError, CheckedDisk, Checker, ExploreError, ExploreOptions, Failure, FoundState,
    Outcome, Recording, SearchEnd, Stage, Verdict, explore,
};

use crate::log_files::{SECTOR, TestLog, TestRequest, content};
use crate::program::{Check, verdict};

fn run(log: &TestLog, options: &ExploreOptions, checker: &dyn Checker) -> Outcome {
    let (_folder, recording) = log.open();
    run_on(&recording, options, checker).unwrap()
}

fn run_on(
    recording: &Recording,
    options: &ExploreOptions,
    checker: &dyn Checker,
) -> Result<Outcome, ExploreError> {
    explore(recording, options, checker, &AtomicBool::new(false), &|_| {})
}

fn first_byte(disk: &dyn CheckedDisk, block: u64) -> u8 {
    let mut byte = [0];
    disk.read(block * 4096, &mut byte).unwrap();
    byte[0]
}

/// Reads every `step`th block.
fn read_blocks(disk: &dyn CheckedDisk, step: u64, count: u64) {
    for place in 0..count {
        let _ = first_byte(disk, place * step);
    }
}

/// Windows of four writes to blocks of their own, each ended by a flush.
fn windows(count: u8) -> TestLog {
    let mut log = TestLog::new(40);
    for window in 0..count {
        for block in 0..4 {
            log.write(block * 8, vec![[window + 1; SECTOR]], false);
        }
        log.flush();
    }
    log
}

/// Reads all, and passes.
fn reads_all() -> impl Checker {
    Check(|disk: &dyn CheckedDisk| {
        read_blocks(disk, 1, 4);
        Ok(Verdict::Passed)
    })
}

#[test]
fn a_check_that_fails_without_a_loss_ends_the_exploration() {
    let checker = Check(|disk: &dyn CheckedDisk| Ok(verdict(first_byte(disk, 0) == 0)));
    let outcome = run(&windows(1), &ExploreOptions::default(), &checker);
    assert_eq!((outcome.end, outcome.checks, outcome.points), (SearchEnd::Baseline, 2, 1));
    assert_eq!(outcome.failures[0].name.to_string(), "5");
    assert!(!outcome.is_complete() && !outcome.has_marks);
}

#[test]
fn a_check_that_reads_nothing_is_made_once() {
    let checker = Check(|_: &dyn CheckedDisk| Ok(Verdict::Passed));
    let outcome = run(&windows(9), &ExploreOptions::default(), &checker);
    assert_eq!((outcome.end, outcome.checks), (SearchEnd::Complete, 1));
    assert!(outcome.pruned > 74 && outcome.points == 37, "{outcome:?}");
}

#[test]
fn a_check_that_overwrites_what_it_reads_depends_on_nothing() {
    let checker = Check(|disk: &dyn CheckedDisk| {
        for block in 0..4 {
            disk.write(block * 4096, &[3; 4096]).unwrap();
            assert_eq!(first_byte(disk, block), 3);
        }
        disk.zero(0, 4096 * 4).unwrap();
        Ok(verdict(first_byte(disk, 2) == 0))
    });
    assert_eq!(run(&windows(3), &ExploreOptions::default(), &checker).checks, 1);
}

#[test]
fn a_check_that_overwrites_a_part_depends_on_the_rest() {
    let rest = |place: usize| {
        Check(move |disk: &dyn CheckedDisk| {
            disk.write(7, &[9; 30]).unwrap();
            let mut sector = [0; SECTOR];
            disk.read(0, &mut sector).unwrap();
            assert_eq!(sector[7..37], [9; 30]);
            Ok(verdict(sector[place] == 1))
        })
    };
    let mut log = TestLog::new(8);
    log.write(0, vec![[1; SECTOR]; 8], false);
    for place in [0, 6, 37, 511] {
        let outcome = run(&log, &ExploreOptions::default(), &rest(place));
        assert_eq!(outcome.end, SearchEnd::Failure, "{place}");
    }
}

#[test]
fn a_flaky_check_is_reported_as_such() {
    let calls = AtomicU64::new(0);
    let checker = Check(|disk: &dyn CheckedDisk| {
        let _ = first_byte(disk, 0);
        Ok(verdict(calls.fetch_add(1, Relaxed) != 2))
    });
    let outcome = run(&windows(3), &ExploreOptions::default(), &checker);
    assert_eq!(outcome.end, SearchEnd::Failure);
    assert!(outcome.failures.is_empty() && outcome.flaky.len() == 1);
}

#[test]
fn a_flaky_check_of_the_fewest_losses_is_reported_as_such() {
    let failed = AtomicBool::new(false);
    let checker = Check(|disk: &dyn CheckedDisk| {
        let state: Vec<u8> = (0..4).map(|block| first_byte(disk, block)).collect();
        let is_single = state == [1, content(0, 8)[0], 1, 1];
        Ok(verdict(!is_single || failed.swap(true, Relaxed)))
    });
    let outcome = run(&windows(1), &ExploreOptions::default(), &checker);
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert_eq!(outcome.flaky[0].name.to_string(), "3-1");
}

#[test]
fn limits_end_an_exploration() {
    let log = windows(9);
    let limited = ExploreOptions { states: Some(7), ..ExploreOptions::default() };
    let outcome = run(&log, &limited, &reads_all());
    assert_eq!((outcome.end, outcome.checks), (SearchEnd::States, 7));
    let time = Some(Duration::from_millis(30));
    let slow = Check(|disk: &dyn CheckedDisk| {
        read_blocks(disk, 1, 4);
        std::thread::sleep(Duration::from_millis(5));
        Ok(Verdict::Passed)
    });
    let begun = Instant::now();
    let outcome = run(&log, &ExploreOptions { time, jobs: 2, ..limited.clone() }, &slow);
    assert!(matches!(outcome.end, SearchEnd::Time | SearchEnd::States), "{outcome:?}");
    let forever = ExploreOptions { time, jobs: 2, samples: u64::MAX, ..ExploreOptions::default() };
    assert_eq!(run(&log, &forever, &slow).end, SearchEnd::Time);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_exploration_is_stopped_by_its_flag_and_by_a_check() {
    let (_folder, recording) = windows(9).open();
    let stop = AtomicBool::new(false);
    let progressed = AtomicU64::new(0);
    let options = ExploreOptions { jobs: 2, ..ExploreOptions::default() };
    let outcome = explore(&recording, &options, &reads_all(), &stop, &|progress| {
        progressed.store(progress.checks, Relaxed);
        stop.store(progress.checks >= 3, Relaxed);
    });
    assert_eq!(outcome.unwrap().end, SearchEnd::Stopped);
    assert!((3..=4).contains(&progressed.into_inner()));
    let stopping = Check(|_: &dyn CheckedDisk| Err(CheckError::Stopped));
    assert_eq!(run_on(&recording, &options, &stopping).unwrap().end, SearchEnd::Stopped);
}

#[test]
fn an_error_of_a_check_ends_the_exploration() {
    let calls = AtomicU64::new(0);
    let checker = Check(|disk: &dyn CheckedDisk| {
        let _ = first_byte(disk, 0);
        if calls.fetch_add(1, Relaxed) < 2 {
            return Ok(Verdict::Passed);
        }
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        Err(CheckError::Host { what: "start the check", source })
    });
    let (_folder, recording) = windows(2).open();
    let options = ExploreOptions { jobs: 2, ..ExploreOptions::default() };
    let error = run_on(&recording, &options, &checker).unwrap_err().to_string();
    assert!(error.contains("cannot start the check: Too many open files"), "{error}");
}

#[test]
fn a_check_that_panics_ends_the_exploration() {
    let calls = AtomicU64::new(0);
    let checker = Check(|disk: &dyn CheckedDisk| {
        read_blocks(disk, 1, 4);
        assert!(calls.fetch_add(1, Relaxed) != 3, "the check panics");
        Ok(Verdict::Passed)
    });
    let options = ExploreOptions { jobs: 3, ..ExploreOptions::default() };
    let explored = std::panic::AssertUnwindSafe(|| run(&windows(2), &options, &checker));
    assert!(std::panic::catch_unwind(explored).is_err());
}

#[test]
fn a_log_that_cannot_be_read_is_no_failure_of_the_check() {
    let log = windows(2);
    let (_folder, path, base) = log.files(&log.encode(false));
    let recording = Recording::open(&path, &base).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(600).unwrap();
    let checker = Check(|disk: &dyn CheckedDisk| {
        let mut byte = [0];
        Ok(verdict(disk.read(0, &mut byte).is_ok()))
    });
    let error = run_on(&recording, &ExploreOptions::default(), &checker).unwrap_err();
    assert!(matches!(error, ExploreError::Read { .. }), "{error}");
}

#[test]
fn power_cuts_are_after_the_mark() {
    let mut log = windows(2);
    log.mark("ready");
    for window in windows(1).requests {
        let issued_after = log.len();
        log.add(TestRequest { issued_after, ..window });
    }
    let (_folder, recording) = log.open();
    let from = Mutex::new(Vec::new());
    let checker = Check(|disk: &dyn CheckedDisk| {
        let values: Vec<u8> = (0..4).map(|block| first_byte(disk, block)).collect();
        from.lock().unwrap().push((values, disk.marks()));
        Ok(Verdict::Passed)
    });
    let options =
        ExploreOptions { from_mark: Some("ready".to_string()), ..ExploreOptions::default() };
    let outcome = run_on(&recording, &options, &checker).unwrap();
    assert_eq!((outcome.points, outcome.has_marks), (5, true));
    for (values, marks) in std::mem::take(&mut *from.lock().unwrap()) {
        assert_eq!(marks, "ready\n");
        assert!(values.iter().all(|value| *value == 1 || *value == 2), "{values:?}");
    }
    let missing = ExploreOptions { from_mark: Some("read".to_string()), ..options };
    let error = run_on(&recording, &missing, &checker).unwrap_err();
    assert_eq!(error.to_string(), "the recording has no mark \"read\"");
}

#[test]
fn an_exploration_goes_on_after_failures_if_asked_to() {
    // Blocks 0 and 1 of a window, and 2 and 3, must not differ.
    let checker = Check(|disk: &dyn CheckedDisk| {
        let same = |one, other| first_byte(disk, one) == first_byte(disk, other);
        Ok(verdict(same(0, 1) && same(2, 3)))
    });
    let keep_going = ExploreOptions { keep_going: true, ..ExploreOptions::default() };
    let outcome = run(&windows(3), &keep_going, &checker);
    assert_eq!(outcome.end, SearchEnd::Complete);
    assert!(outcome.failures.len() >= 6, "{:?}", outcome.failures);
    let names: BTreeSet<_> = outcome.failures.iter().map(|state| &state.name).collect();
    assert_eq!(names.len(), outcome.failures.len());
    assert!(outcome.failures.iter().all(|state| state.lost <= 1));
    // Each is repeated once; states that lost more than a failing one are not reduced to it again.
    assert!(outcome.repeated_checks <= outcome.failures.len() as u64 + 3, "{outcome:?}");
    let first = run(&windows(3), &ExploreOptions::default(), &checker);
    assert_eq!((first.end, first.failures.len()), (SearchEnd::Failure, 1));
}

/// Explores with a check of which one, by its number, ends early and fails with `end`.
fn run_with_early_end(early: Option<u64>, end: &str) -> Outcome {
    let calls = AtomicU64::new(0);
    let checker = Check(|disk: &dyn CheckedDisk| {
        if Some(calls.fetch_add(1, Relaxed)) == early {
            let failure = Failure { end: end.to_string(), output: String::new() };
            return Ok(Verdict::Failed(failure));
        }
        let ordered = first_byte(disk, 0) >= first_byte(disk, 1);
        read_blocks(disk, 1, 4);
        Ok(verdict(ordered))
    });
    let options = ExploreOptions { keep_going: true, ..ExploreOptions::default() };
    run(&windows(3), &options, &checker)
}

#[test]
fn a_check_that_ends_early_hides_no_failures() {
    let names = |states: &[FoundState]| -> BTreeSet<_> {
        states.iter().map(|state| state.name.to_string()).collect()
    };
    let usual = run_with_early_end(None, "");
    assert_eq!((usual.end, usual.flaky.len()), (SearchEnd::Complete, 0));
    assert!(usual.failures.len() >= 3);
    let mut flaky = 0;
    for end in ["no end within 60 s", "signal 9", "the guest ended", "exit status 1"] {
        for early in 1..usual.checks {
            let outcome = run_with_early_end(Some(early), end);
            let found = &names(&outcome.failures) | &names(&outcome.flaky);
            let missing = &names(&usual.failures) - &found;
            assert!(missing.is_empty(), "check {early} with {end}: {missing:?} in {outcome:?}");
            assert!(outcome.failures.len() + 1 >= usual.failures.len(), "{early}, {end}");
            assert_eq!(outcome.end, SearchEnd::Complete, "{early}, {end}");
            flaky += outcome.flaky.len();
        }
    }
    assert!(flaky > 4, "{flaky}");
}

#[test]
fn a_check_that_always_ends_early_decides_for_the_states_that_it_was_given() {
    let checker = Check(|disk: &dyn CheckedDisk| {
        if disk.marks().is_empty() {
            let end = "no end within 60 s".to_string();
            return Ok(Verdict::Failed(Failure { end, output: String::new() }));
        }
        Ok(Verdict::Passed)
    });
    let mut log = windows(2);
    log.mark("done");
    let keep_going = ExploreOptions { keep_going: true, ..ExploreOptions::default() };
    let outcome = run(&log, &keep_going, &checker);
    assert_eq!(outcome.end, SearchEnd::Complete);
    let points: BTreeSet<u64> = outcome.failures.iter().map(|state| state.name.point).collect();
    assert!(points.len() > 3, "{points:?}");
}

#[test]
fn failures_that_share_a_lost_write_are_two() {
    let checker = Check(|disk: &dyn CheckedDisk| {
        let has: Vec<bool> = (0..3).map(|block| first_byte(disk, block) == 1).collect();
        Ok(verdict(has[1] || has[0] && has[2]))
    });
    let mut log = windows(1);
    log.requests.pop();
    log.mark("open");
    log.flush();
    let from_mark = Some("open".to_string());
    let keep_going = ExploreOptions { keep_going: true, from_mark, ..ExploreOptions::default() };
    let outcome = run(&log, &keep_going, &checker);
    let names: Vec<_> = outcome.failures.iter().map(|state| state.name.to_string()).collect();
    for name in ["4-0-1", "4-1-2"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

#[test]
fn blocks_of_one_write_have_contents_of_their_own() {
    let mut log = TestLog::new(16);
    for second in [b'B', b'C'] {
        log.write(0, [vec![[b'A'; SECTOR]; 8], vec![[second; SECTOR]; 8]].concat(), false);
        log.flush();
    }
    log.requests.pop();
    let checker = Check(|disk: &dyn CheckedDisk| {
        Ok(verdict(first_byte(disk, 0) != b'A' || first_byte(disk, 1) != b'B'))
    });
    let options = ExploreOptions { atomicity: Atomicity::Whole, ..ExploreOptions::default() };
    let outcome = run(&log, &options, &checker);
    assert_eq!(outcome.failures[0].failure.end, "exit status 1");
}

#[test]
fn the_same_exploration_is_the_same() {
    let explored = |seed| {
        let states = Mutex::new(Vec::new());
        let checker = Check(|disk: &dyn CheckedDisk| {
            let state: Vec<u8> = (0..4).map(|block| first_byte(disk, block)).collect();
            states.lock().unwrap().push(state);
            Ok(Verdict::Passed)
        });
        let options = ExploreOptions { seed, max_lost: 1, ..ExploreOptions::default() };
        run(&windows(4), &options, &checker);
        states.into_inner().unwrap()
    };
    assert_eq!(explored(1), explored(1));
    assert_ne!(explored(1), explored(2));
}

#[test]
fn power_cuts_around_flushes_come_first() {
    let first = Mutex::new(Vec::new());
    let checker = Check(|disk: &dyn CheckedDisk| {
        let state: Vec<u8> = (0..4).map(|block| first_byte(disk, block)).collect();
        first.lock().unwrap().push(state);
        Ok(Verdict::Passed)
    });
    run(&windows(2), &ExploreOptions::default(), &checker);
    let first = first.into_inner().unwrap();
    // The last state, then before the first flush: all, nothing.
    let old = content(0, 0)[0];
    assert_eq!(first[..3], [[2, 2, 2, 2], [1, 1, 1, 1], [old; 4]]);
}

#[test]
fn a_long_recording_is_explored_in_time() {
    let mut log = TestLog::new(8 * 3000);
    let begun = Instant::now();
    for number in 0..60_000u64 {
        let issued_after = number.saturating_sub(number % 16 + 1);
        let is_flush = number % 64 == 63;
        let sector = if number % 8 == 0 { 0 } else { number * 7919 % 2990 * 8 };
        log.add(TestRequest {
            kind: if is_flush { LogKind::Flush } else { LogKind::Write },
            sector: if is_flush { 0 } else { sector },
            data: if is_flush { Vec::new() } else { vec![content(number, sector)] },
            issued_after,
            fua: false,
            errno: 0,
        });
    }
    let (_folder, recording) = log.open();
    println!("{} requests read after {:?}", recording.requests(), begun.elapsed());
    let checker = Check(|disk: &dyn CheckedDisk| {
        read_blocks(disk, 40, 8);
        Ok(Verdict::Passed)
    });
    let options = ExploreOptions { max_lost: 1, samples: 50, jobs: 2, ..ExploreOptions::default() };
    let stage = Mutex::new(Stage::Baseline);
    let report = |progress: &crash::Progress| *stage.lock().unwrap() = progress.stage;
    let stop = AtomicBool::new(false);
    let outcome = explore(&recording, &options, &checker, &stop, &report).unwrap();
    assert_eq!(outcome.end, SearchEnd::Complete);
    println!(
        "{} power cuts, {} checks, {} known states, {:?}",
        outcome.points, outcome.checks, outcome.pruned, outcome.elapsed
    );
    assert!(outcome.points > 3_000 && outcome.checks + outcome.pruned > 9_000);
    assert_ne!(*stage.lock().unwrap(), Stage::Baseline);
}
