//! Layers: a disk whose changes go to a file of its own, the top, over a base that is only read.
//!
//! The base is a raw image, a block device, or another layer that is frozen. `docs/layer-format.md`
//! has the format of the file, its invariants, and what each crash can leave.

mod block_budget;
mod chain;
mod check;
mod claim;
mod compare;
mod create;
mod disk;
mod engine;
mod ephemeral;
mod file;
mod header;
mod identity;
mod info;
mod levels;
mod live;
mod map;
mod map_file;
mod map_flush;
mod map_memory;
mod map_sync;
mod merge;
mod new_file;
mod offline;
mod open;
mod seats;
mod simulated;
mod snapshot;
mod status;
mod stream;
mod succession;
mod unflushed;
mod unit;
mod uuid;

pub use self::chain::{LayerChain, LayerPiece, LayerPieces};
pub use self::check::{CheckFinding, CheckReport, check_layer};
pub use self::compare::CompareStep;
pub use self::create::{CreatedLayer, create_layer};
pub use self::disk::LayeredDisk;
pub use self::ephemeral::EphemeralPlace;
pub use self::identity::BaseChange;
pub use self::info::{
    LevelHead, LevelInfo, layer_chain, layer_info, layer_size, level_paths, probe_base,
};
pub use self::live::{LayerMerge, MergeError, MergeProgress, MergedLayer};
pub use self::map_memory::MapMemory;
pub use self::offline::{
    CommitOptions, CommittedLayer, CopyProgress, FlattenedImage, FrozenLayer, OnProgress,
    RebasedLayer, ResetLayer, commit_layer, flatten_layer, freeze_layer, rebase_layer, reset_layer,
};
pub use self::simulated::{SimulatedLayers, SimulatedLevel, SimulatedSleep, SimulatedTop};
pub use self::snapshot::{MadeSnapshot, SnapshotError, snapshot};
pub use self::status::stores_below;
pub use self::stream::{ExportedStream, ImportedLayer, LayerExport, LayerImport};
pub use self::uuid::Uuid;
