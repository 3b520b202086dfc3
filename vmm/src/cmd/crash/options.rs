//! Options of `crash explore`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{NonEmptyStringValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use crash::host::CheckOptions;
use crash::{Atomicity, ExploreOptions};

use super::duration::{DEFAULT_TIMEOUT, parse_duration};
use super::recording::RecordingArguments;

/// The exploration that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct ExploreArguments {
    /// The recording
    #[command(flatten)]
    pub(super) recording: RecordingArguments,
    /// The search
    #[command(flatten)]
    pub(super) search: SearchArguments,
    /// First explore the disk as if it ignored flushes: a check that accepts that proves nothing
    #[arg(long)]
    pub(super) control: bool,
}

/// The search for failing states, and the check.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct SearchArguments {
    /// The check, a command for /bin/sh. It fails unless it ends with status 0
    #[arg(long, value_name = "CMD", value_parser = NonEmptyStringValueParser::new().map(OsString::from))]
    pub(super) check: OsString,
    /// Run checks in the guest of this configuration, which gets each state as a SCSI disk
    #[arg(long, value_name = "CONFIG", conflicts_with = "uses_loop")]
    pub(super) check_guest: Option<PathBuf>,
    /// Give checks a loop device instead of a file
    #[arg(long = "loop")]
    pub(super) uses_loop: bool,
    /// The unit of a write that is lost or kept as a whole
    #[arg(long, value_name = "UNIT", value_enum, default_value_t = AtomicUnit::Sector)]
    atomic: AtomicUnit,
    /// Most writes that a state loses, except for samples
    #[arg(long, value_name = "N", default_value_t = 3)]
    lost: usize,
    /// States that lose a random set of writes
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: u64,
    /// The number that determines the samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Cut the power only after the first mark of this text
    #[arg(long, value_name = "TEXT")]
    from_mark: Option<String>,
    /// Checks at a time [default: as many as processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Longest time for all, as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Most checks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// Go on after the first failing state
    #[arg(long)]
    keep_going: bool,
    /// Time limit of one check
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = DEFAULT_TIMEOUT)]
    pub(super) timeout: Duration,
    /// Write the result as JUnit XML as well
    #[arg(long, value_name = "FILE")]
    pub(super) junit: Option<PathBuf>,
}

/// The unit of a write that is on the disk or not as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AtomicUnit {
    /// Each sector of 512 bytes
    Sector,
    /// Each block of 4 KiB
    Block,
    /// Each request
    Request,
}

impl SearchArguments {
    /// Checks at a time.
    fn jobs(&self) -> usize {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(processors, usize::from)
    }

    pub(super) fn options(&self) -> ExploreOptions {
        ExploreOptions {
            atomicity: match self.atomic {
                AtomicUnit::Sector => Atomicity::Sector,
                AtomicUnit::Block => Atomicity::Block,
                AtomicUnit::Request => Atomicity::Whole,
            },
            max_lost: self.lost,
            samples: self.samples,
            seed: self.seed,
            jobs: self.jobs(),
            time: self.time,
            states: self.states,
            from_mark: self.from_mark.clone(),
            keep_going: self.keep_going,
            ..ExploreOptions::default()
        }
    }

    pub(super) fn checks(&self) -> CheckOptions {
        CheckOptions {
            command: self.check.clone(),
            limit: self.timeout,
            uses_loop: self.uses_loop,
            threads: self.jobs(),
        }
    }

    /// The check, as a guest gets it.
    ///
    /// # Errors
    ///
    /// It is not UTF-8.
    pub(super) fn text_of_check(&self) -> anyhow::Result<String> {
        self.check.to_str().map(str::to_owned).context("the check is not UTF-8")
    }

    /// The options of this check for `crash open`, if it has others than the default.
    pub(super) fn open_options(&self) -> String {
        let uses_loop = if self.uses_loop { " --loop" } else { "" };
        let has_default = parse_duration(DEFAULT_TIMEOUT) == Ok(self.timeout);
        let seconds = self.timeout.as_secs();
        let limit = if has_default { String::new() } else { format!(" --timeout {seconds}s") };
        format!("{uses_loop}{limit}")
    }

    /// Samples that are asked for.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }
}
