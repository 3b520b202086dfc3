//! Errors in a file system with a journal are found with few lost writes; a right one passes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crash::{
    Atomicity, CheckError, CheckedDisk, Checker, ExploreOptions, Outcome, SearchEnd, Verdict,
    explore,
};

use crate::journal::Journal;
use crate::log_files::{SECTOR, TestLog};
use crate::program::verdict;

fn explored(log: &TestLog, checker: &dyn Checker, options: &ExploreOptions) -> Outcome {
    let (_folder, recording) = log.open();
    explore(&recording, options, checker, &AtomicBool::new(false), &|_| {}).unwrap()
}

/// The number of lost writes with which an error is found, and the checks until then.
fn found(journal: Journal, options: &ExploreOptions) -> (usize, String) {
    let outcome = explored(&journal.record(4), &journal, options);
    assert_eq!(outcome.end, SearchEnd::Failure, "{journal:?}");
    assert!(outcome.has_marks && outcome.flaky.is_empty());
    let state = &outcome.failures[0];
    println!(
        "{} after {} checks and {} known states: {}",
        state.name, outcome.checks, outcome.pruned, state.failure.output
    );
    assert!(outcome.checks < 100);
    (state.lost, state.failure.output.clone())
}

fn checksummed() -> Journal {
    let (flush_before_commit, commit_fua) = (false, false);
    let (flush_after_commit, checksum) = (true, true);
    Journal { flush_before_commit, commit_fua, flush_after_commit, checksum, ..Journal::default() }
}

#[test]
fn right_journals_pass_each_state() {
    let journals = [
        Journal::default(),
        checksummed(),
        Journal { noise: 2, ..Journal::default() },
        Journal { noise: 2, ..checksummed() },
    ];
    for journal in journals {
        let log = journal.record(4);
        let exhaustive = ExploreOptions { exhaustive: true, ..ExploreOptions::default() };
        for options in [exhaustive, ExploreOptions { jobs: 2, ..ExploreOptions::default() }] {
            let outcome = explored(&log, &journal, &options);
            assert_eq!(outcome.end, SearchEnd::Complete, "{outcome:?}");
            assert!(outcome.is_complete() && outcome.failures.is_empty());
            let (checks, pruned, points) = (outcome.checks, outcome.pruned, outcome.points);
            println!("{points} power cuts, {checks} checks, {pruned} known states: {journal:?}");
        }
    }
}

#[test]
fn a_missing_flush_before_the_commit_is_found() {
    let journal = Journal { flush_before_commit: false, ..Journal::default() };
    assert_eq!(found(journal, &ExploreOptions::default()).0, 1);
}

#[test]
fn a_missing_fua_of_the_commit_is_found() {
    let journal = Journal { commit_fua: false, ..Journal::default() };
    assert_eq!(found(journal, &ExploreOptions::default()).0, 1);
}

#[test]
fn a_commit_without_a_checksum_is_found() {
    let journal = Journal { checksum: false, ..checksummed() };
    assert_eq!(found(journal, &ExploreOptions::default()).0, 1);
}

#[test]
fn a_missing_flush_before_the_header_is_found() {
    let journal = Journal { flush_before_header: false, ..Journal::default() };
    let (lost, output) = found(journal, &ExploreOptions::default());
    assert_eq!(lost, 1);
    assert!(output.starts_with("file "), "{output}");
}

#[test]
fn a_torn_header_is_found_where_sectors_are_atomic_only() {
    let journal = Journal { wide_header: true, ..Journal::default() };
    let no_samples = ExploreOptions { samples: 0, ..ExploreOptions::default() };
    let (lost, output) = found(journal, &no_samples);
    assert_eq!((lost, output.as_str()), (1, "the header is torn"));
    for atomicity in [Atomicity::Block, Atomicity::Whole] {
        let options = ExploreOptions { atomicity, ..ExploreOptions::default() };
        assert!(explored(&journal.record(4), &journal, &options).is_complete());
    }
}

#[test]
fn noise_does_not_hide_an_error() {
    for noise in [5, 40] {
        let journal = Journal { flush_before_commit: false, noise, ..Journal::default() };
        assert_eq!(found(journal, &ExploreOptions::default()).0, 1);
    }
}

/// Passes if one of several copies of a promise is there.
struct Copies(u64);

impl Checker for Copies {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let promised = disk.marks().contains("promised");
        let has = |copy: u64| {
            let mut bytes = [0; SECTOR];
            disk.read(copy * 4096, &mut bytes).unwrap();
            bytes == [7; SECTOR]
        };
        Ok(verdict(!promised || (0..self.0).any(has)))
    }
}

fn copies(count: u64) -> TestLog {
    let mut log = TestLog::new(count * 8);
    for copy in 0..count {
        log.write(copy * 8, vec![[7; SECTOR]], false);
    }
    log.mark("promised");
    log.flush();
    log
}

#[test]
fn errors_of_several_lost_writes_are_found_with_all_of_them() {
    for count in 1..=3 {
        let log = copies(count);
        let only_lost = ExploreOptions { samples: 0, ..ExploreOptions::default() };
        let outcome = explored(&log, &Copies(count), &only_lost);
        let state = &outcome.failures[0];
        assert_eq!(state.lost as u64, count);
        let all: Vec<String> = (0..count).map(|write| write.to_string()).collect();
        assert_eq!(state.name.to_string(), format!("{count}-{}", all.join("-")));
        assert_eq!(state.shrunk_from.as_ref().unwrap().to_string(), format!("{count}-all"));
    }
}

#[test]
fn known_states_save_most_checks() {
    let (mut with, mut without) = (0, 0);
    for journal in [Journal::default(), checksummed(), Journal { noise: 3, ..checksummed() }] {
        let log = journal.record(6);
        let options = ExploreOptions { samples: 300, ..ExploreOptions::default() };
        let pruned = explored(&log, &journal, &options);
        let plain = explored(&log, &journal, &ExploreOptions { pruning: false, ..options });
        assert!(pruned.is_complete() && plain.is_complete() && plain.pruned == 0);
        println!("{} checks instead of {}", pruned.checks, plain.checks);
        assert_eq!(pruned.points, plain.points);
        with += pruned.checks;
        without += plain.checks;
    }
    assert!(with * 4 < without, "{with} checks instead of {without}");
}

#[test]
fn an_explanation_has_what_was_lost_and_what_is_around() {
    let (_folder, recording) = Journal::default().record(2).open();
    let explained = recording.explain(&"14-13.0".parse().unwrap()).unwrap();
    assert_eq!(explained.open, 4);
    assert_eq!(explained.lost.iter().map(|lost| lost.write.number).collect::<Vec<_>>(), [13]);
    assert!(!explained.lost[0].durable);
    assert_eq!(explained.mark_before.unwrap().text, "committed 1");
    let all = recording.explain(&"9-all".parse().unwrap()).unwrap();
    assert_eq!((all.lost.len(), all.open), (3, 3));
    assert!(!all.lost[0].in_flight);
    let text = recording.explain(&"10-10".parse().unwrap()).unwrap().to_string();
    let lines = [
        "power cut after 10 completions; open writes: 1",
        "  last flush before: flush 9, queue 0, 0.000009 s to 0.000009 s",
        "  first flush after: flush 15, queue 0, 0.000015 s to 0.000015 s",
        "  last mark before: mark \"committed 1\" after 6 completions, at 0.000006 s",
        "  first mark after: mark \"committed 2\" after 17 completions, at 0.000017 s",
        "  lost writes: 1",
        "    write 10 of 512 bytes at byte 0, FUA, queue 0, 0.000010 s to 0.000010 s, in flight: \
         lost as a whole",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
}
