//! The storage stack: what a disk is.
//!
//! A [`Backend`] is the control plane of one disk: its geometry, its cache mode, and the factory of
//! engines. An [`IoEngine`] is the data plane: one per queue worker, owned by that worker's thread.
//! Everything a guest can ask of a disk arrives here as a [`Request`] and leaves as a [`Completion`].
//!
//! This crate knows no virtio, no KVM and no guest addresses: memory reaches it as [`Segment`]s of
//! this process.

mod backend;
mod cache_mode;
mod host_file;
mod page;
mod raw_file;
mod request;
#[doc(hidden)]
pub mod simulation;
mod sync_latch;
mod uring;

pub use backend::{
    Backend, DiscardLimits, Engine, EngineSetup, Geometry, IoEngine, MemoryRegion, OpenError,
    ResizeError, Wake,
};
pub use cache_mode::{CacheMode, FlushAction, UnknownCacheMode};
pub use raw_file::RawFile;
pub use request::{
    ByteOffset, ByteRange, Completion, Durability, Operation, Request, Segment, Segments,
};
