//! Explorations of recordings that tests make up, in memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod exhaustion;
mod hostile;
mod journal;
mod legal;
mod log_files;
mod oracle;
mod planted;
mod program;
mod search;
