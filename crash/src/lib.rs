//! Crash testing: what a power cut could have left of a disk, by the log of its writes
//! (docs/record-log.md), and whether a check accepts it.

#![deny(clippy::print_stdout)]

mod base_check;
mod block_index;
mod cells;
mod check;
mod content;
mod explain;
mod history;
pub mod host;
mod log_reader;
mod losses;
mod name;
mod overlay;
mod recording;
mod search;
mod source;
mod state;

pub use base_check::BaseError;
pub use check::{CheckError, CheckedDisk, Checker, Failure, Verdict};
pub use explain::{Explanation, LostWrite, MarkFact, RequestFact};
pub use log_reader::{EntryError, LogEnd, RecordingError};
pub use losses::{Loss, Losses};
pub use name::{StateName, StateNameError};
pub use recording::{Recording, StateError};
pub use search::{
    Atomicity, ExploreError, ExploreOptions, FoundState, Outcome, Progress, SearchEnd, Stage,
    explore,
};
pub use state::StateDisk;
