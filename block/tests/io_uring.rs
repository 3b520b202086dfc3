//! The contract, over the io_uring engine.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;
mod contract;

use block::{Backend, EngineKind, RawFile};

const ENGINE: EngineKind = EngineKind::IoUring;

fn disk_under_test(file: RawFile) -> Box<dyn Backend> {
    Box::new(file)
}
