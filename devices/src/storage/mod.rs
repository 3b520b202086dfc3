//! What every storage protocol shares: the loop between a queue and an engine, and its parts.

pub(crate) mod disk_control;
mod in_flight;
mod polling;
pub mod queue_worker;
pub mod stats;
mod write_cache;

pub use disk_control::DiskControl;
pub use write_cache::WriteCache;
