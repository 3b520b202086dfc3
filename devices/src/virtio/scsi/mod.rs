//! The virtio SCSI host (Virtio 1.2 §5.6): a controller with targets and logical units.
//!
//! Queue 0 takes task management functions, queue 1 delivers events, the other queues take
//! commands. Each request queue has a worker, and the worker an engine for each unit that it has
//! I/O for. The meaning of commands is in [`crate::scsi`].

mod accounting;
mod address;
mod bus;
mod command;
mod config;
mod control_queue;
mod controller;
mod device;
mod disk;
mod disk_map;
mod engines;
mod event_queue;
mod protocol;
mod queries;
mod request;
mod response;
mod sleep;
mod task_management;

pub use address::Address;
pub use bus::ScsiBus;
pub use controller::Detached;
pub use device::Scsi;
pub use disk_map::AttachError;
pub use sleep::Sleep;
