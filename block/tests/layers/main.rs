//! Layers read, checked, exported and imported, against a model and against a reader of the format
//! that shares no code with the program.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(clippy::cast_possible_truncation, reason = "the disks are small")]

mod check;
mod format;
mod hostile;
mod model;
mod ranges;
mod streams;
mod unflushed;
