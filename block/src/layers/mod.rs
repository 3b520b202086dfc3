//! Layers: a disk whose changes go to a file of its own, the top, over a base that is only read.
//!
//! The base is a raw image, a block device, or another layer that is frozen. `docs/layer-format.md`
//! has the format of the file, its invariants, and what each crash can leave.

mod create;
mod disk;
mod engine;
mod file;
mod header;
mod identity;
mod info;
mod levels;
mod map;
mod map_sync;
mod open;
mod unit;
mod uuid;

pub use self::create::{CreatedLayer, create_layer};
pub use self::disk::LayeredDisk;
pub use self::identity::BaseChange;
pub use self::info::{LevelInfo, layer_info, level_count, probe_base};
pub use self::uuid::Uuid;
