//! The parts that all storage protocols share: the loop between a queue and its engines,
//! statistics, and the control plane of a disk.
//!
//! The queue worker is written for virtqueues. Everything else here knows no ring, so that another
//! protocol brings its own ring and the worker becomes generic over both.

mod capacity;
mod disk_control;
mod engines;
mod histogram;
mod in_flight;
mod polling;
mod protocol;
mod queue_worker;
mod stats;
mod write_cache;

pub(crate) use capacity::{DriverCapacity, SECTOR_BYTES};
pub(crate) use disk_control::ControlledDisk;
pub use disk_control::DiskControl;
pub use engines::Engines;
pub use histogram::{Counter, Histogram};
pub use protocol::{Completed, Parsed, Protocol};
pub use queue_worker::QueueWorker;
pub use stats::{KindStats, OperationKind, QueueStats, Round};
pub use write_cache::WriteCache;

use std::io;

/// The error with the name of its disk, for a caller that closes several.
#[must_use]
pub fn error_of_disk(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("disk {name}: {error}"))
}
