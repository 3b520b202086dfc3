//! The contract of engines, kept by io_uring.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;
mod contract;

const ENGINE: block::EngineKind = block::EngineKind::IoUring;
