//! The search compared with all disks that power cuts can leave: it reads what a check reads of any
//! of them, and makes few checks.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use crash::{Atomicity, ExploreOptions, Loss, Losses, SearchEnd, StateName, explore};
use proptest::prelude::*;

use crate::legal::{drawn, log_of};
use crate::log_files::TestLog;
use crate::oracle::Writer;
use crate::program::{Checked, Program, ProgramChecker, TestImage, Trace, WHOLE_DISK};

/// The numbers of explored logs and states, in all cases of a test.
#[derive(Clone, Copy, Default)]
struct Counts {
    windows: u64,
    disks: u64,
    checks: u64,
    distinct: u64,
    widest: usize,
    logs: u64,
}

/// The log up to the last request with which no power cut has more than `most` pieces open.
fn narrowed(mut log: TestLog, atomicity: Atomicity, most: usize) -> TestLog {
    let widest = |log: &TestLog| {
        (0..=log.len()).map(|n| log.pieces(n, atomicity).len()).max().unwrap_or_default()
    };
    while widest(&log) > most {
        log.requests.pop();
    }
    log
}

/// The traces of a program on all disks that power cuts can leave.
fn all_traces(
    log: &TestLog,
    atomicity: Atomicity,
    program: &Program,
    counts: &mut Counts,
) -> BTreeSet<(bool, Trace)> {
    let mut traces = BTreeSet::new();
    let mut disks: BTreeSet<(Vec<Writer>, String)> = BTreeSet::new();
    for point in 0..=log.len() {
        let marks = log.marks_at(point);
        counts.windows += 1;
        counts.widest = counts.widest.max(log.pieces(point, atomicity).len());
        log.each_disk(point, atomicity, |writers| {
            counts.disks += 1;
            if !disks.insert((writers.to_vec(), marks.clone())) {
                return;
            }
            let sectors = (0u64..).zip(writers);
            let bytes = sectors.flat_map(|(sector, writer)| log.content_of(*writer, sector));
            let mut disk = TestImage { bytes: bytes.collect(), marks: marks.clone() };
            traces.insert(program.run(&mut disk));
        });
    }
    traces
}

/// A program that passes on the last disk, as the search asks for.
fn passing(log: &TestLog, seed: u64) -> Program {
    let last = |sector| {
        let last = log.legal_writers(sector, log.len()).into_iter().next_back();
        log.content_of(last.flatten(), sector)
    };
    let bytes = (0..log.base.len() as u64).flat_map(last).collect();
    let disk = TestImage { bytes, marks: log.marks_at(log.len()) };
    let sectors = log.base.len() as u64;
    (0..)
        .map(|more| Program { seed: seed ^ more << 32, sectors, steps: 12, fails: 17 })
        .find(|program| program.run(&mut disk.clone()).0)
        .unwrap()
}

fn compare(
    log: &TestLog,
    atomicity: Atomicity,
    seed: u64,
    jobs: usize,
    counts: &mut Counts,
) -> Result<(), TestCaseError> {
    let program = passing(log, seed);
    let expected = all_traces(log, atomicity, &program, counts);
    let (_folder, recording) = log.open();
    let checker = ProgramChecker::new(program);
    let options = ExploreOptions {
        atomicity,
        jobs,
        keep_going: true,
        exhaustive: true,
        ..ExploreOptions::default()
    };
    let stop = AtomicBool::new(false);
    let outcome = explore(&recording, &options, &checker, &stop, &|_| {}).unwrap();
    prop_assert_eq!(outcome.end, SearchEnd::Complete);
    prop_assert!(outcome.flaky.is_empty());
    let found = checker.traces.into_inner().unwrap();
    counts.logs += 1;
    counts.checks += outcome.checks - outcome.repeated_checks;
    counts.distinct += expected.len() as u64;
    let missed = expected.difference(&found).next();
    prop_assert!(missed.is_none(), "of {} runs, missed {missed:?}", expected.len());
    let illegal = found.difference(&expected).next();
    prop_assert!(illegal.is_none(), "no power cut leads to {illegal:?}");
    let fails = expected.iter().any(|(passed, _)| !passed);
    prop_assert_eq!(fails, !outcome.failures.is_empty());
    for failure in &outcome.failures {
        let disk = recording.state(&failure.name).unwrap();
        prop_assert!(!program.run(&mut Checked(disk)).0, "{}", failure.name);
    }
    Ok(())
}

static TOTAL: Mutex<Counts> =
    Mutex::new(Counts { windows: 0, disks: 0, checks: 0, distinct: 0, widest: 0, logs: 0 });

fn report(atomicity: Atomicity) {
    let counts = *TOTAL.lock().unwrap();
    println!(
        "{atomicity:?}: {} logs so far, {} power cuts, {} disks, {} runs that differ, {} checks; \
         widest window {}",
        counts.logs, counts.windows, counts.disks, counts.distinct, counts.checks, counts.widest,
    );
}

fn random_logs(atomicity: Atomicity, sectors: u64, longest: u64, most: usize, cases: u32) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let strategy = (drawn(40), any::<u64>(), 1..3usize);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&strategy, |(drawn, seed, jobs)| {
        let mut log = narrowed(log_of(&drawn, sectors, longest), atomicity, most);
        for after in (0..=log.len()).filter(|after| seed >> (after % 64) & 7 == 7) {
            log.marks.push((after, format!("mark {}", seed >> (after % 64) & 15)));
        }
        let mut counts = TOTAL.lock().unwrap();
        compare(&log, atomicity, seed, jobs, &mut counts)
    });
    report(atomicity);
    result.unwrap();
}

#[test]
fn windows_of_sectors_are_explored_as_by_exhaustion() {
    random_logs(Atomicity::Sector, 24, 3, 8, 24);
}

#[test]
fn windows_of_blocks_are_explored_as_by_exhaustion() {
    random_logs(Atomicity::Block, 40, 14, 8, 24);
}

#[test]
fn windows_of_whole_writes_are_explored_as_by_exhaustion() {
    random_logs(Atomicity::Whole, 40, 14, 8, 24);
}

#[test]
fn windows_of_twelve_open_writes_are_explored_as_by_exhaustion() {
    random_logs(Atomicity::Whole, 64, 10, 12, 6);
}

/// The traces of an exploration that loses at most two writes.
fn bounded_traces(
    log: &TestLog,
    program: Program,
    atomicities: &[Atomicity],
    samples: u64,
) -> BTreeSet<(bool, Trace)> {
    let (_folder, recording) = log.open();
    let checker = ProgramChecker::new(program);
    for atomicity in atomicities {
        let options = ExploreOptions {
            atomicity: *atomicity,
            max_lost: 2,
            samples,
            seed: log.len(),
            ..ExploreOptions::default()
        };
        let stop = AtomicBool::new(false);
        let outcome = explore(&recording, &options, &checker, &stop, &|_| {}).unwrap();
        assert!(outcome.is_complete(), "{outcome:?}");
    }
    checker.traces.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn up_to_two_lost_writes_and_all_old_discards_are_explored_in_all_combinations(
        drawn in drawn(30), seed in any::<u64>(),
    ) {
        let log = log_of(&drawn, 64, 12);
        let program = Program { seed, sectors: 64, steps: 10, fails: u64::MAX };
        let found = bounded_traces(&log, program, &[Atomicity::Whole], 0);
        let (_folder, recording) = log.open();
        for point in 0..=log.len() {
            let old = |n: &u64| log.is_flushed_discard(*n, point);
            let open: Vec<u64> =
                (0..log.len()).filter(|n| log.is_open(*n, point) && !old(n)).collect();
            let lost = |losses: &Losses, discards| StateName {
                point, losses: losses.clone(), discards,
            };
            let mut names = Vec::new();
            for (place, one) in open.iter().enumerate() {
                for other in &open[place..] {
                    let losses = Losses::none().with(*one, &Loss::Whole).with(*other, &Loss::Whole);
                    names.push(lost(&losses, false));
                    names.extend((0..log.len()).any(|n| old(&n)).then(|| lost(&losses, true)));
                }
            }
            for name in names {
                let run = program.run(&mut Checked(recording.state(&name).unwrap()));
                prop_assert!(found.contains(&run), "missed {}", name);
            }
        }
    }

    #[test]
    fn torn_and_random_states_are_legal(drawn in drawn(30)) {
        let log = narrowed(log_of(&drawn, 40, 14), Atomicity::Sector, 9);
        let all = [Atomicity::Sector, Atomicity::Block, Atomicity::Whole];
        let program = Program { seed: WHOLE_DISK, sectors: 40, steps: 0, fails: u64::MAX };
        let legal = all_traces(&log, Atomicity::Sector, &program, &mut Counts::default());
        let found = bounded_traces(&log, program, &all, 60);
        let illegal = found.difference(&legal).next();
        prop_assert!(illegal.is_none(), "no power cut leads to {illegal:?}");
    }
}
