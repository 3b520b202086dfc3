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
mod geometry;
mod host_file;
mod host_io;
mod kick;
mod log_limit;
mod memory;
mod memory_budget;
mod named;
mod options;
mod page;
mod range_lock;
mod raw_file;
mod request;
mod requests;
mod segment;
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
    Backend, DiskStatus, EngineChoice, EngineSetup, IoEngine, MemoryRegion, OpenError, ResizeError,
    Wake,
};
pub use cache_mode::{CacheMode, FlushAction};
pub use discard::DiscardStats;
pub use geometry::{DiscardLimits, Geometry};
pub use host_file::{ImageHolder, ImageLock, image_holder};
pub use log_limit::LogLimit;
pub use memory::MemoryDisk;
pub use named::Named;
pub use options::{DetectZeroes, DiskOptions, EngineKind, ImageLocking, OnEnospc, StableCopyMode};
pub use raw_file::{RawFile, StoreSpace, Survey};
pub use request::{ByteOffset, ByteRange, Completion, Durability, Miscompare, Operation, Request};
pub use segment::{Segment, Segments, gather, scatter, total_len};
pub use space::{BackingSpace, Crossing, EnospcHold, SoftLimitState, SpaceProbe};
pub use store_facts::StoreFacts;
pub use store_stack::{
    BtrfsFile, DmTarget, FileSystem, FlushPromise, LateEnospc, Problem, QueueAttributes,
    QueueCache, StableCopies, StoreStack, Storey, StoreyEffects, StoreyKind, ZfsDataset,
};
pub use sync_latch::LostWrites;
pub use uring::refuses_io_uring;
