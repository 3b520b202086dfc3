//! `crash explore`.

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use crash::host::HostChecker;
use crash::{Checker, ExploreError, ExploreOptions, Outcome, Recording, SearchEnd};

use super::guest::GuestChecker;
use super::interrupt::{hear_signals, until_interrupted};
use super::junit::junit;
use super::options::{ExploreArguments, SearchArguments};
use super::progress::ExploreLine;
use super::recording::{RecordingArguments, shown};
use super::report::ExploreReport;
use crate::cmd::print;
use crate::exit::Exit;
use crate::log;
use crate::sanitize::sanitize;

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
    let files = &arguments.recording;
    let recording = files.open()?;
    if let Some(junit) = &arguments.search.junit {
        files.require_other(junit)?;
    }
    hear_signals().context("cannot receive signals")?;
    search(&recording, files, &arguments.search, arguments.control, json)
}

/// Explores a recording and prints what was found, with the control first if that is asked for.
pub(super) fn search(
    recording: &Recording,
    files: &RecordingArguments,
    arguments: &SearchArguments,
    has_control: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    if let Some(config) = &arguments.check_guest {
        let checker = GuestChecker::start(config, arguments.text_of_check()?, arguments.timeout)?;
        let stop = || checker.stop();
        return Exploration { recording, files, arguments, json }.run(has_control, &checker, &stop);
    }
    let checker =
        HostChecker::new(arguments.checks()).map_err(|error| anyhow::anyhow!("{error}"))?;
    let stop = || checker.stop();
    Exploration { recording, files, arguments, json }.run(has_control, &checker, &stop)
}

struct Exploration<'e> {
    recording: &'e Recording,
    files: &'e RecordingArguments,
    arguments: &'e SearchArguments,
    json: bool,
}

impl Exploration<'_> {
    fn run(
        &self,
        has_control: bool,
        checker: &dyn Checker,
        stop: &(dyn Fn() + Sync),
    ) -> anyhow::Result<ExitCode> {
        let mut control = None;
        if has_control {
            let careless = self.recording.without_flushes().context("cannot read the recording")?;
            let options = ExploreOptions { keep_going: false, ..self.arguments.options() };
            let Some(outcome) = self.explore(&careless, &options, checker, stop)? else {
                return Ok(Exit::BadConfig.into());
            };
            if outcome.end == SearchEnd::Complete && outcome.failures.is_empty() {
                anyhow::bail!(
                    "the check accepts all {} states of a disk that ignores flushes: it proves \
                     nothing; let it compare the disk with the marks of what was synced",
                    outcome.checks + outcome.pruned
                );
            }
            match outcome.end {
                SearchEnd::Stopped => return Ok(Exit::Interrupted.into()),
                // The report of the true disk says so.
                SearchEnd::Baseline | SearchEnd::Failure => {}
                _ if outcome.failures.is_empty() => anyhow::bail!(
                    "the check accepts the first {} states of a disk that ignores flushes: it \
                     proves nothing so far; allow more time or more states",
                    outcome.checks + outcome.pruned
                ),
                _ => {}
            }
            control = Some(outcome.checks);
        }
        let options = self.arguments.options();
        let Some(outcome) = self.explore(self.recording, &options, checker, stop)? else {
            return Ok(Exit::BadConfig.into());
        };
        self.report(&outcome, control)?;
        Ok(exit(&outcome).into())
    }

    /// Explores; `None` if the command line was wrong, which is reported.
    fn explore(
        &self,
        recording: &Recording,
        options: &ExploreOptions,
        checker: &dyn Checker,
        stop_checks: &(dyn Fn() + Sync),
    ) -> anyhow::Result<Option<Outcome>> {
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
            Ok(outcome) => Ok(Some(outcome)),
            Err(error @ ExploreError::NoMark(_)) => {
                log::print(format_args!("error: {}", sanitize(&error.to_string())));
                Ok(None)
            }
            Err(error) => anyhow::bail!("{error}"),
        }
    }

    fn report(&self, outcome: &Outcome, control: Option<u64>) -> anyhow::Result<()> {
        let Self { recording, files, arguments, json } = *self;
        let report = ExploreReport { arguments, files, recording, outcome, control };
        print(&if json { report.json() } else { report.text() })?;
        if let Some(file) = &arguments.junit {
            let text = junit(&shown(&files.log), outcome);
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
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
