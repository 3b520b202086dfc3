//! The disks of a machine or of `bulkhead serve`: opened, listed, attached, detached and watched.

mod controllers;
mod error;
mod events;
mod hotplug;
mod open;
mod registry;
mod space_watch;
mod stall_watch;

pub(crate) use controllers::ScsiControllers;
pub(crate) use error::DiskError;
pub(crate) use events::{EventLog, EventRecord};
pub(crate) use hotplug::{Hotplug, HotplugError};
pub(crate) use open::{open_backend, open_virtio_blk};
pub(crate) use registry::{DiskRegistry, ManagedDisk};
pub(crate) use stall_watch::{StallWatch, error_text};
