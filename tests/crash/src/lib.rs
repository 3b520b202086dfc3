//! Workloads whose crash states are explored: a small database with planted faults on a disk in
//! memory, and file systems and databases of this machine's own kernel on a recorded loop device.

mod direct;
mod disk_file;
mod engine_thread;
mod explorations;
pub mod mini_db;
mod plain;
mod recorded;
mod workloads;

pub use crash::Outcome as SearchOutcome;
pub use direct::record_in_memory;
pub use explorations::{Exploration, Judgement, Limits, explorations};
pub use plain::PlainSamples;
pub use recorded::Recorded;
