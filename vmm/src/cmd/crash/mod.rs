//! `bulkhead crash`: explores what power cuts could have left of a recorded disk.

mod answer;
mod checks;
mod child;
mod duration;
mod entries;
mod explain;
mod explore;
mod guest;
mod image;
mod interrupt;
mod junit;
mod log;
mod open;
mod options;
mod progress;
mod recording;
mod report;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use crash::StateName;

use self::checks::checks;
use self::duration::{DEFAULT_TIMEOUT, parse_duration};
use self::explain::{EXPLAIN_HELP, explain};
use self::explore::{EXPLORE_HELP, explore};
use self::log::{LOG_HELP, log};
use self::open::{OPEN_HELP, OpenAction, open};
use self::options::ExploreArguments;
use self::recording::RecordingArguments;
use self::test::{TEST_HELP, TestArguments, test};
use crate::sanitize::sanitize;

/// A request about a recorded disk.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum CrashCommand {
    /// Check what power cuts could have left of a disk, and find the states that a check refuses
    #[command(after_help = EXPLORE_HELP)]
    Explore(Box<ExploreArguments>),
    /// Run a machine whose disk is recorded, and explore what power cuts could have left of it
    #[command(after_help = TEST_HELP)]
    Test(Box<TestArguments>),
    /// Show when the power was cut in a state, and which writes it lost
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// The recording
        #[command(flatten)]
        recording: RecordingArguments,
        /// The state, by the name that `explore` printed
        state: StateName,
    },
    /// Show the disk in a state, as a file
    #[command(after_help = OPEN_HELP)]
    Open {
        /// The recording
        #[command(flatten)]
        recording: RecordingArguments,
        /// The state, by the name that `explore` printed
        state: StateName,
        /// Run a check on it, and print what it prints
        #[arg(long, value_name = "CMD", conflicts_with = "to")]
        run: Option<std::ffi::OsString>,
        /// Give the check a loop device instead of a file
        #[arg(long = "loop", requires = "run")]
        uses_loop: bool,
        /// Time limit of the check, as of `explore`
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = DEFAULT_TIMEOUT, requires = "run")]
        timeout: Duration,
        /// Write it to a new image
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Show what a log of writes has
    #[command(after_help = LOG_HELP)]
    Log {
        /// The log, of this program or of dm-log-writes
        log: PathBuf,
        /// List its entries
        #[arg(long)]
        entries: bool,
    },
    /// List the checks that come with the program
    Checks {
        /// Print the script of this one
        name: Option<String>,
    },
}

/// Runs the request and prints the result.
///
/// # Errors
///
/// The recording cannot be read, a check cannot be made, or the result not be printed.
pub(crate) fn crash(command: &CrashCommand, json: bool) -> anyhow::Result<ExitCode> {
    // An error may have text of a log or of a check, which are untrusted.
    run(command, json).map_err(|error| anyhow::anyhow!("{}", sanitize(&format!("{error:#}"))))
}

fn run(command: &CrashCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        CrashCommand::Explore(arguments) => explore(arguments, json),
        CrashCommand::Explain { recording, state } => explain(recording, state, json),
        CrashCommand::Open { recording, state, run, uses_loop, timeout, to } => {
            let action = match (run, to) {
                (Some(command), _) => {
                    OpenAction::Run { command, uses_loop: *uses_loop, limit: *timeout }
                }
                (None, Some(file)) => OpenAction::Write(file),
                (None, None) => OpenAction::Expose,
            };
            open(recording, state, &action, json)
        }
        CrashCommand::Test(arguments) => test(arguments, json),
        CrashCommand::Checks { name } => checks(name.as_deref(), json).map(|()| ExitCode::SUCCESS),
        CrashCommand::Log { log: path, entries } => log(path, *entries, json),
    }
}
