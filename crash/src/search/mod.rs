//! The search for a state that a check does not accept (docs/crash-search.md).
//!
//! `points` has the power cuts, `queue` the states that wait, `extend` the losses that a check
//! would see by what it read, `samples` random states. `runs` makes checks, unless `tree` knows the
//! verdict; `work` has the threads, and `shrink` reduces what failed.

mod extend;
mod options;
mod points;
mod queue;
mod runs;
mod samples;
mod shrink;
mod tree;
mod work;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

pub use self::options::{
    Atomicity, ExploreError, ExploreOptions, FoundState, Outcome, Progress, SearchEnd, Stage,
};
use self::points::Points;
use self::runs::{Halt, Runs};
use self::work::{Found, Work};
use crate::check::Checker;
use crate::losses::Losses;
use crate::name::StateName;
use crate::recording::Recording;

/// Explores what power cuts could have left, and whether the check accepts it. `progress` is called
/// after each check, by any thread. Setting `stop` ends the exploration after the checks that run.
///
/// A check must be deterministic: it decides by the blocks and the marks that it reads only.
///
/// # Errors
///
/// See [`ExploreError`]. A failing check is no error.
pub fn explore(
    recording: &Recording,
    options: &ExploreOptions,
    checker: &dyn Checker,
    stop: &AtomicBool,
    progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Outcome, ExploreError> {
    let history = &recording.source().history;
    let from = match &options.from_mark {
        None => 0,
        Some(text) => {
            let mark = history.marks().iter().find(|mark| mark.text == *text);
            mark.ok_or_else(|| ExploreError::NoMark(text.clone()))?.after
        }
    };
    let runs = Runs::new(recording, options, checker, stop, progress);
    let (end, found, points) = match baseline(&runs) {
        Ok(None) => Work::new(&runs, Points::new(history, from)).run()?,
        Ok(Some(found)) => (SearchEnd::Baseline, found, 1),
        Err(Halt::End(end)) => (end, Found::default(), 0),
        Err(Halt::Error(error)) => return Err(error),
    };
    Ok(Outcome {
        checks: runs.checks.load(Relaxed),
        repeated_checks: runs.repeated.load(Relaxed),
        pruned: runs.pruned.load(Relaxed),
        points,
        end,
        failures: found.failures,
        flaky: found.flaky,
        elapsed: runs.started.elapsed(),
        has_marks: recording.marks() > 0,
    })
}

/// Checks the disk as the recording left it, with nothing lost. If that fails, so do others.
fn baseline(runs: &Runs<'_>) -> Result<Option<Found>, Halt> {
    let point = runs.recording.requests();
    let name = StateName { point, losses: Losses::none(), discards: false };
    let Some(failure) = runs.verdict(&name)?.failure else { return Ok(None) };
    let again = runs.repeat(&name)?;
    let state = FoundState { name, failure, lost: 0, shrunk_from: None };
    let mut found = Found::default();
    if !again.passed {
        found.failures.push(state);
    } else {
        found.flaky.push(state);
    }
    Ok(Some(found))
}
