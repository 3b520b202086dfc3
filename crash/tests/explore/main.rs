//! Explorations of recordings that tests make up, in memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod base;
mod discards;
mod exhaustion;
mod files_in_use;
mod hostile;
mod journal;
mod legal;
mod log_files;
mod oracle;
mod planted;
mod program;
mod search;
