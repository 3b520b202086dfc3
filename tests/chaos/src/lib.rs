//! Chaos runs: `bulkhead serve` and `bulkhead run` under verified load while the host disturbs them
//! (docs/chaos.md).
//!
//! [`run`] starts the processes, plays a schedule of disturbances that a seed determines, and
//! checks that no acknowledged write is lost, no request hangs, no process ends disorderly, and
//! memory, threads and descriptors are flat. Needs root and `/dev/kvm`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test program fails by panicking"
)]

mod content;
mod control;
mod disturber;
mod events;
mod ledger;
mod load;
mod memory_group;
mod process;
mod program;
mod report;
mod run;
mod schedule;
mod stall_clock;
mod usage;

pub use report::Report;
pub use run::{Failure, Plan, run};
