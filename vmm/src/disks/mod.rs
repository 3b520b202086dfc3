//! The disks of a machine or of `bulkhead serve`: opened, listed, attached, detached and watched.

mod commit;
mod controllers;
mod error;
mod events;
mod hotplug;
mod mark;
mod open;
mod registry;
mod snapshot;
mod space_watch;
mod stall_watch;

pub(crate) use commit::{CommitFailure, CommitState, Commits, DiskCommit};
pub(crate) use controllers::ScsiControllers;
pub(crate) use error::{DiskError, HotplugError};
pub(crate) use events::{EventLog, EventRecord};
pub(crate) use hotplug::Hotplug;
pub(crate) use mark::{MarkFailure, mark};
pub(crate) use open::{open_backend, open_virtio_blk};
pub(crate) use registry::{DiskRegistry, ManagedDisk};
pub(crate) use snapshot::{DiskSnapshots, SnapshotFailure, snapshot};
pub(crate) use stall_watch::{StallWatch, error_text};
