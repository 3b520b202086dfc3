//! The storage stack: what a disk is.
//!
//! A [`Backend`] is the control plane of one disk: its geometry, its cache mode, and the factory of
//! engines. An [`IoEngine`] is the data plane: one per queue, owned by the thread of the queue's
//! worker. A guest's request arrives here as a [`Request`] and leaves as a [`Completion`].
//!
//! This crate knows no virtio, no KVM and no guest addresses: memory reaches it as [`Segment`]s of
//! this process.

#![deny(clippy::print_stdout)]

mod allocation;
mod backend;
mod buffer_pool;
mod cache_mode;
mod clock;
mod discard;
mod disk_state;
mod engine;
mod failure_log;
mod flush_proof;
mod geometry;
mod host_file;
mod host_io;
mod image_format;
mod kick;
mod layers;
mod log_limit;
mod memory;
mod memory_budget;
mod named;
mod options;
mod page;
mod range_lock;
mod raw_file;
mod record;
mod request;
mod requests;
mod segment;
mod shell;
#[doc(hidden)]
pub mod simulation;
mod space;
mod store_facts;
mod store_stack;
mod sync_latch;
mod sys;
mod threads;
mod uring;

pub use allocation::{Extent, Extents};
pub use backend::{
    Backend, DiskStatus, EngineChoice, EngineSetup, EphemeralState, IoEngine, MemoryRegion,
    OpenError, ResizeError, WRONG_LINK_REMEDY, Wake,
};
pub use cache_mode::{CacheMode, FlushAction};
pub use discard::DiscardStats;
pub use failure_log::HostErrors;
pub use flush_proof::{FlushProof, ModeProof, ROUNDS, Scratch, ScratchError, StoreySeen};
pub use geometry::{DiscardLimits, Geometry};
pub use host_file::{
    DroppedLimit, FileIdentity, ImageHolder, ImageLock, Implausible, image_holder, lock_unchanged,
};
pub use image_format::ImageFormat;
pub use layers::{
    BaseChange, CheckFinding, CheckReport, CommitOptions, CommittedLayer, CompareStep,
    CopyProgress, CreatedLayer, EphemeralPlace, ExportedStream, FlattenedImage, FrozenLayer,
    ImportedLayer, LayerChain, LayerExport, LayerImport, LayerMerge, LayerPiece, LayerPieces,
    LayeredDisk, LevelHead, LevelInfo, MadeSnapshot, MapMemory, MergeError, MergeProgress,
    MergedLayer, OnProgress, RebasedLayer, ResetLayer, SnapshotError, Uuid, check_layer,
    commit_layer, create_layer, flatten_layer, freeze_layer, layer_chain, layer_info, layer_size,
    level_paths, probe_base, rebase_layer, reset_layer, snapshot, stores_below,
};
pub use log_limit::LogLimit;
pub use memory::MemoryDisk;
pub use named::Named;
pub use options::{
    DetectZeroes, DiskFormat, DiskOptions, EngineKind, ImageLocking, OnEnospc, StableCopyMode,
};
pub use raw_file::{FormatVerdict, ProbedFormat, RawFile, StoreSpace, Survey, free_name};
pub use record::{
    BASE_SAMPLE, BaseSamples, LOG_SECTOR, LogEntry, LogEntryError, LogKind, LogStamp, LogSuper,
    LogSuperError, MARK_MAX, MarkError, RECORD_LOG_BYTES, RECORD_QUEUE_BYTES, RecordEnd,
    RecordOptions, RecordStatus, RecordedDisk, Recording,
};
pub use request::{ByteOffset, ByteRange, Completion, Durability, Miscompare, Operation, Request};
pub use segment::{Segment, Segments, gather, scatter, total_len};
pub use shell::{shell_path, shell_word};
pub use space::{BackingSpace, Crossing, EnospcHold, SoftLimitState, SpaceProbe};
pub use store_facts::{BaseFacts, StoreFacts};
pub use store_stack::{
    BtrfsFile, DmTarget, FileSystem, FlushPromise, HostCache, LateEnospc, Problem, QueueAttributes,
    QueueCache, StableCopies, StoreStack, Storey, StoreyEffects, StoreyKind, WrongLink, ZfsDataset,
    wrong_link,
};
pub use sync_latch::LostWrites;
pub use uring::refuses_io_uring;
