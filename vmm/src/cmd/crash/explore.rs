//! `crash explore`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail, ensure};
use crash::host::HostChecker;
use crash::{Checker, ExploreError, ExploreOptions, Outcome, Recording, SearchEnd};

use super::answer::{AnswerOutput, SearchAnswer};
use super::entries::has_writes;
use super::guest::{GuestChecker, GuestError};
use super::interrupt::{hear_signals, until_interrupted};
use super::junit::junit;
use super::options::{ExploreArguments, SearchArguments};
use super::progress::ExploreLine;
use super::recording::{RecordingArguments, require_temporary_folder, shown};
use super::report::ExploreReport;
use crate::exit::Exit;

/// Examples of the command.
pub(super) const EXPLORE_HELP: &str = "\
A check finds the disk in $BULKHEAD_DISK, the marks that had been made in the
file $BULKHEAD_MARKS, and may use the folder $BULKHEAD_TMP. It may write to the
disk: each check has its own. It runs in the folder of this command.
`bulkhead crash checks` lists those that come with the program.

Examples:
  bulkhead crash explore disk.log --base base.img --check check-ext4 \\
    --atomic block
  bulkhead crash explore disk.log --base base.img --loop \\
    --check 'mount $BULKHEAD_DISK $BULKHEAD_TMP && ./verify $BULKHEAD_TMP'
  bulkhead crash explore disk.log --base base.img --time 10m \\
    --check ./check.sh --junit crash.xml

Exit codes:
   0  no failing state was found
   1  the host failed, the check fails without a power cut, or `--control` says
      that it proves nothing
   2  the command line is wrong
   3  the check fails in a state
 130  interrupted, and no failing state was found until then";

/// Explores a recording and prints what was found.
pub(super) fn explore(arguments: &ExploreArguments, json: bool) -> anyhow::Result<ExitCode> {
    let (files, search) = (&arguments.recording, &arguments.search);
    hear_signals().context("cannot receive signals")?;
    let output = AnswerOutput::open(files, &[], search.junit.as_deref(), json)?;
    output.give(files.open().and_then(|recording| {
        Exploration { recording: &recording, files, arguments: search, json }.run(arguments.control)
    }))
}

/// The exploration of a recording.
pub(super) struct Exploration<'e> {
    pub(super) recording: &'e Recording,
    pub(super) files: &'e RecordingArguments,
    pub(super) arguments: &'e SearchArguments,
    pub(super) json: bool,
}

/// The result of an exploration that has ended.
enum Explored {
    /// The outcome, and the checks until a disk that ignores flushes was caught, if it was tried.
    Outcome(Outcome, Option<u64>),
    Other(SearchAnswer),
}

impl Exploration<'_> {
    /// Explores the recording, with the control first if that is asked for.
    ///
    /// # Errors
    ///
    /// The host failed, or the check proves nothing.
    pub(super) fn run(&self, has_control: bool) -> anyhow::Result<SearchAnswer> {
        require_temporary_folder()?;
        ensure!(
            has_writes(&self.files.log)?,
            "{}: the log has no writes: the guest changed nothing on this disk",
            shown(&self.files.log)
        );
        let arguments = self.arguments;
        let explored = if let Some(config) = &arguments.check_guest {
            let check = arguments.text_of_check()?;
            let checker = match GuestChecker::start(config, check, arguments.timeout) {
                Ok(checker) => checker,
                Err(GuestError::Stopped) => return Ok(SearchAnswer::Interrupted),
                Err(error) if error.is_wrong_config() => {
                    return Ok(SearchAnswer::Refused(error.to_string()));
                }
                Err(error) => return Err(error.into()),
            };
            self.explore_all(has_control, &checker, &|| checker.stop())?
        } else {
            let checker = HostChecker::new(arguments.checks());
            let checker = checker.map_err(|error| anyhow::anyhow!("{error}"))?;
            self.explore_all(has_control, &checker, &|| checker.stop())?
        };
        Ok(match explored {
            Explored::Outcome(outcome, control) => self.report(&outcome, control),
            Explored::Other(answer) => answer,
        })
    }

    fn explore_all(
        &self,
        has_control: bool,
        checker: &dyn Checker,
        stop: &(dyn Fn() + Sync),
    ) -> anyhow::Result<Explored> {
        let control = if has_control {
            match self.explore_careless(checker, stop)? {
                Ok(checks) => Some(checks),
                Err(answer) => return Ok(Explored::Other(answer)),
            }
        } else {
            None
        };
        let explored = self.explore(self.recording, &self.arguments.options(), checker, stop)?;
        Ok(match explored {
            Ok(outcome) => Explored::Outcome(outcome, control),
            Err(answer) => Explored::Other(answer),
        })
    }

    /// Explores the disk as if it ignored flushes; returns the checks until that was caught.
    ///
    /// # Errors
    ///
    /// It was not, or the host failed.
    fn explore_careless(
        &self,
        checker: &dyn Checker,
        stop: &(dyn Fn() + Sync),
    ) -> anyhow::Result<Result<u64, SearchAnswer>> {
        let careless = self.recording.without_flushes().context("cannot read the recording")?;
        let options = ExploreOptions { keep_going: false, ..self.arguments.options() };
        let outcome = match self.explore(&careless, &options, checker, stop)? {
            Ok(outcome) => outcome,
            Err(answer) => return Ok(Err(answer)),
        };
        let states = outcome.checks + outcome.pruned;
        match outcome.end {
            SearchEnd::Stopped => return Ok(Err(SearchAnswer::Interrupted)),
            // The report of the true disk says so.
            SearchEnd::Baseline | SearchEnd::Failure => {}
            _ if !outcome.failures.is_empty() => {}
            SearchEnd::Complete => bail!(
                "the check accepts all {states} states of a disk that ignores flushes: it proves \
                 nothing; let it compare the disk with the marks of what was synced"
            ),
            _ => bail!(
                "the check accepts the first {states} states of a disk that ignores flushes: it \
                 proves nothing so far; allow more time or more states"
            ),
        }
        Ok(Ok(outcome.checks))
    }

    /// Explores, unless the command line is wrong.
    fn explore(
        &self,
        recording: &Recording,
        options: &ExploreOptions,
        checker: &dyn Checker,
        stop_checks: &(dyn Fn() + Sync),
    ) -> anyhow::Result<Result<Outcome, SearchAnswer>> {
        let (stop, line) = (AtomicBool::new(false), ExploreLine::default());
        let interrupt = || {
            stop.store(true, Ordering::Relaxed);
            stop_checks();
        };
        let explored = until_interrupted(interrupt, || {
            crash::explore(recording, options, checker, &stop, &|progress| line.update(progress))
        });
        line.end();
        match explored {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(error @ ExploreError::NoMark(_)) => {
                Ok(Err(SearchAnswer::Refused(error.to_string())))
            }
            Err(error) => bail!("{error}"),
        }
    }

    fn report(&self, outcome: &Outcome, control: Option<u64>) -> SearchAnswer {
        let Self { recording, files, arguments, json } = *self;
        let report = ExploreReport { arguments, files, recording, outcome, control };
        SearchAnswer::Found {
            text: if json { report.json() } else { report.text() },
            junit: junit(&shown(&files.log), outcome),
            exit: exit(outcome),
        }
    }
}

fn exit(outcome: &Outcome) -> Exit {
    match outcome.end {
        SearchEnd::Baseline => Exit::Failed,
        // A check that failed once has found something, even if it is only itself.
        _ if !outcome.failures.is_empty() || !outcome.flaky.is_empty() => Exit::FailingState,
        SearchEnd::Stopped => Exit::Interrupted,
        _ => Exit::PoweredOff,
    }
}
