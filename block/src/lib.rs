//! The storage stack: what a disk is.
//!
//! A [`Backend`] is the control plane of one disk: its geometry, its cache mode, and the factory of
//! engines. An [`IoEngine`] is the data plane: one per queue worker, owned by that worker's thread.
//! Everything a guest can ask of a disk arrives here as a [`Request`] and leaves as a [`Completion`].
//!
//! This crate knows no virtio, no KVM and no guest addresses: memory reaches it as [`Segment`]s of
//! this process.

mod allocation;
mod backend;
mod backing;
mod cache_mode;
mod clock;
mod detect_zeroes;
mod engine_choice;
mod failures;
mod host_file;
mod log_limit;
mod memory;
mod page;
mod range_lock;
mod raw_file;
mod request;
mod requests;
mod segment;
#[doc(hidden)]
pub mod simulation;
mod soft_limit;
mod space;
mod steps;
mod sync_latch;
mod threads;
mod trim;
mod uring;
mod zvol;

pub use allocation::{Extent, Extents};
pub use backend::{
    Backend, DiscardLimits, DiskStatus, EngineChoice, EngineSetup, Geometry, IoEngine,
    MemoryRegion, OpenError, ResizeError, Wake,
};
pub use backing::BackingSpace;
pub use cache_mode::{CacheMode, FlushAction, UnknownCacheMode};
pub use detect_zeroes::{DetectZeroes, UnknownDetectZeroes};
pub use engine_choice::{EngineKind, UnknownEngine};
pub use log_limit::LogLimit;
pub use memory::MemoryDisk;
pub use raw_file::{DiskOptions, Lock, RawFile, Survey};
pub use request::{ByteOffset, ByteRange, Completion, Durability, Miscompare, Operation, Request};
pub use segment::{Segment, Segments, gather, scatter, total_len};
pub use soft_limit::{Crossing, SoftLimitState};
pub use space::{EnospcHold, OnEnospc};
pub use trim::DiscardStats;
