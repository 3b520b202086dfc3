//! The door for the simulator in `tests/`: the production engine over a kernel of the simulator's own.
//!
//! Not for the product, and no part of the crate's promise. The seam is [`Ring`], the two queues
//! of an io_uring: what requests are admitted, how they become entries, what an answer means, the latch
//! and the draining are the engine's own code, which is the point.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use crate::engine_choice::{EngineKind, EngineSelection};
use crate::failures::FailureLog;
use crate::host_file::{DirectAlignment, HostFile, Kind, LiveGeometry};
use crate::range_lock::RangeLock;
use crate::space::SpaceWatch;
use crate::sync_latch::SyncLatch;
use crate::trim::{Account, Activity};
use crate::uring::UringEngine;
use crate::{
    CacheMode, DetectZeroes, DiskStatus, EngineSetup, Geometry, IoEngine, OnEnospc, OpenError,
};

pub use crate::clock::Clock;
pub use crate::uring::{Answer, Ring};

/// What a simulated disk looks like.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Its geometry.
    pub geometry: Geometry,
    /// Its cache mode.
    pub mode: CacheMode,
    /// Whether it is a block device rather than a regular file.
    pub block_device: bool,
    /// The block that direct I/O takes at least, and a device's own, in bytes: the logical block or more.
    pub host_block: u32,
    /// What becomes of writes that the host has no space for.
    pub on_enospc: OnEnospc,
    /// What becomes of writes of nothing but zeroes.
    pub detect_zeroes: DetectZeroes,
}

/// An opened disk without a host behind it.
#[derive(Debug)]
pub struct SimulatedDisk {
    host: Arc<HostFile>,
}

impl SimulatedDisk {
    /// Opens a disk, whose deadlines `clock` measures. `file` is never used. Direct I/O wants memory and
    /// offsets aligned to the host's block.
    #[must_use]
    pub fn new(look: Look, clock: Clock, file: File) -> Self {
        let Look { geometry, mode, block_device, host_block, on_enospc, detect_zeroes } = look;
        let aligned = DirectAlignment { memory: host_block, offset: host_block };
        let shared = mode.is_direct() && host_block > geometry.logical_block;
        let host = HostFile {
            path: "simulated".into(),
            file,
            kind: if block_device { Kind::BlockDevice } else { Kind::Regular },
            mode,
            read_only: false,
            geometry: LiveGeometry::new(geometry),
            engine: EngineSelection::new(EngineKind::IoUring),
            direct: mode.is_direct().then_some(aligned),
            range_unit: if block_device { host_block } else { 1 },
            range_lock: RangeLock::new(if shared { host_block } else { 1 }, shared),
            latch: SyncLatch::default(),
            space: SpaceWatch::new("simulated".into(), "simulated".into(), on_enospc),
            clock,
            soft_limit: None,
            trimmed: Account::default(),
            activity: Activity::default(),
            detect_zeroes,
            zeroing: AtomicUsize::new(0),
            failures: FailureLog::new("simulated".into()),
            discard_refusal_noted: AtomicBool::new(false),
        };
        Self { host: Arc::new(host) }
    }

    /// Makes an engine over `ring`, which has room for twice the depth.
    ///
    /// # Errors
    ///
    /// When the ring does not take the kick.
    pub fn engine<R: Ring + 'static>(
        &self,
        ring: R,
        setup: &EngineSetup<'_>,
    ) -> Result<Box<dyn IoEngine>, OpenError> {
        let engine = UringEngine::over(ring, Arc::clone(&self.host), setup);
        Ok(Box::new(engine.map_err(OpenError::NoIoUring)?))
    }

    /// What [`crate::Backend::sync`] is, with the host's `fdatasync` given.
    ///
    /// # Errors
    ///
    /// The host's error, now or before.
    pub fn sync_with(&self, fdatasync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.host.sync_with(fdatasync)
    }

    /// What engines have of it.
    #[cfg(test)]
    pub(crate) fn host(&self) -> Arc<HostFile> {
        Arc::clone(&self.host)
    }

    /// The look it was opened with.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.host.geometry.get()
    }

    /// See [`crate::Backend::stop_holding`].
    pub fn stop_holding(&self) {
        self.host.space.stop();
    }

    /// See [`crate::Backend::status`].
    #[must_use]
    pub fn status(&self) -> DiskStatus {
        self.host.status()
    }

    /// Its cache mode.
    #[must_use]
    pub fn cache_mode(&self) -> CacheMode {
        self.host.mode
    }
}
