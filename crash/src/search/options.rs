//! The options of an exploration, and its outcome.

use std::io;
use std::time::Duration;

use crate::check::{CheckError, Failure};
use crate::name::StateName;
use crate::recording::StateError;

/// The part of a write that is on the disk or not as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// Each sector of 512 bytes.
    Sector,
    /// Each block of 4096 bytes, as aligned on the disk.
    Block,
    /// Each write, whatever its length.
    Whole,
}

/// The states that are explored, and for how long.
#[derive(Clone, Debug)]
pub struct ExploreOptions {
    /// The part of a write that is on the disk or not as a whole.
    pub atomicity: Atomicity,
    /// Most writes that are lost, in whole or in part, in the states before the samples.
    pub max_lost: usize,
    /// States that lose a random set of what is open, after all others. Unless it is 0, each power
    /// cut has one more before those that lose single writes.
    pub samples: u64,
    /// Determines the samples.
    pub seed: u64,
    /// Checks at a time; 0 is as 1.
    pub jobs: usize,
    /// Longest time for the exploration; checks that run are not interrupted.
    pub time: Option<Duration>,
    /// Most checks that are made.
    pub states: Option<u64>,
    /// Power cuts are after the first mark of this text only.
    pub from_mark: Option<String>,
    /// Failures do not end the exploration.
    pub keep_going: bool,
    /// States that read as a known one are not checked. Off only to compare.
    pub pruning: bool,
    /// Any number of lost writes, in each combination of their pieces, and no samples. For small
    /// logs.
    pub exhaustive: bool,
}

impl Default for ExploreOptions {
    fn default() -> Self {
        Self {
            atomicity: Atomicity::Sector,
            max_lost: 3,
            samples: 1000,
            seed: 0,
            jobs: 1,
            time: None,
            states: None,
            from_mark: None,
            keep_going: false,
            pruning: true,
            exhaustive: false,
        }
    }
}

/// How far an exploration is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Checks that were made.
    pub checks: u64,
    /// States whose verdict was known without a check.
    pub pruned: u64,
    /// Failing states that were found.
    pub failures: u64,
    /// States that wait, as far as they are known.
    pub waiting: u64,
    /// The states that are explored at the time.
    pub stage: Stage,
    /// Time since the start.
    pub elapsed: Duration,
}

/// The part of an exploration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The last state, with nothing lost.
    #[default]
    Baseline,
    /// States that lose at most this number of writes.
    Lost(usize),
    /// Random states.
    Samples,
    /// A failing state is reduced.
    Reduction,
}

/// Why an exploration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchEnd {
    /// All that was asked for was explored.
    Complete,
    /// The check fails on the disk as it was at the end of the recording, without any loss. Other
    /// failures would prove nothing.
    Baseline,
    /// A failing state was found.
    Failure,
    /// The time was over.
    Time,
    /// As many checks as were allowed were made.
    States,
    /// It was stopped.
    Stopped,
    /// There were more states than it could remember.
    Memory,
}

/// A state that the check does not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundState {
    /// Its name.
    pub name: StateName,
    /// How the check failed.
    pub failure: Failure,
    /// Number of writes that it lost, in whole or in part.
    pub lost: usize,
    /// The state that was found first, if this one was made of it by restoring lost writes.
    pub shrunk_from: Option<StateName>,
}

/// The result of an exploration.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Checks that were made.
    pub checks: u64,
    /// Those of them that reduced or repeated a failure.
    pub repeated_checks: u64,
    /// States whose verdict was known without a check.
    pub pruned: u64,
    /// Power cuts that were explored: those that differ by what they can leave.
    pub points: u64,
    /// Why it ended.
    pub end: SearchEnd,
    /// States that fail each time. With [`SearchEnd::Baseline`], the last state of the recording.
    pub failures: Vec<FoundState>,
    /// States that failed, and passed when they were checked again.
    pub flaky: Vec<FoundState>,
    /// How long it took.
    pub elapsed: Duration,
    /// The recording has marks from which the check can learn what was promised.
    pub has_marks: bool,
}

impl Outcome {
    /// Whether all that was asked for was explored.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end == SearchEnd::Complete
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    /// No mark has the text.
    #[error("the recording has no mark {0:?}")]
    NoMark(String),
    /// A check could not be made.
    #[error("state {name}: {source}")]
    Check {
        /// The state.
        name: StateName,
        /// Why not.
        source: CheckError,
    },
    /// The log or the base could not be read.
    #[error("state {name}: cannot read the recording: {source}")]
    Read {
        /// The state.
        name: StateName,
        /// The host's error.
        source: io::Error,
    },
    /// A state is not one of the recording.
    #[error(transparent)]
    State(#[from] StateError),
}
