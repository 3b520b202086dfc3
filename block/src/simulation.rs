//! The interface of the simulator in `tests/`: the production engine over a simulated kernel.
//!
//! Not part of the crate's API. The seam is [`Ring`], the two queues of an io_uring: admission,
//! ring entries, the meaning of results, the latch and draining are the engine's own code.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::disk_state::OpenDisk;
use crate::host_file::{DirectIo, FileKind, HostFile, HostLimits};
use crate::uring::UringEngine;
use crate::{
    DiskOptions, DiskStatus, EngineSetup, Geometry, IoEngine, OpenError, StableCopies,
    StableCopyMode,
};

pub use crate::clock::Clock;
pub use crate::uring::{Ring, RingResult};

/// Parameters of a simulated disk.
#[derive(Clone, Debug)]
pub struct SimulatedParameters {
    /// Its geometry.
    pub geometry: Geometry,
    /// Its options. Those that the host's limits follow from are ignored.
    pub options: DiskOptions,
    /// It is a block device rather than a regular file.
    pub block_device: bool,
    /// The block of direct I/O, and of a device, in bytes: the logical block or more.
    pub host_block: u32,
}

/// An open disk without a host.
#[derive(Debug)]
pub struct SimulatedDisk {
    disk: Arc<OpenDisk>,
}

impl SimulatedDisk {
    /// A disk whose deadlines are measured by `clock`. `file` is never used. Direct I/O requires
    /// memory and offsets aligned to the host's block.
    #[must_use]
    pub fn new(parameters: SimulatedParameters, clock: Clock, file: File) -> Self {
        let SimulatedParameters { geometry, options, block_device, host_block } = parameters;
        let copied = options.stable_copies == StableCopyMode::On;
        let aligned = DirectIo {
            memory: host_block,
            offset: host_block,
            copies_reads: copied,
            copies_writes: copied,
        };
        let limits = HostLimits {
            geometry,
            direct: options.cache.is_direct().then_some(aligned),
            range_unit: if block_device { host_block } else { 1 },
        };
        let kind = if block_device { FileKind::BlockDevice } else { FileKind::Regular };
        let stable_copies = StableCopies::default();
        let file =
            HostFile { path: "simulated".into(), file, kind, options, limits, stable_copies };
        Self { disk: Arc::new(OpenDisk::new(file, clock)) }
    }

    /// Makes an engine over `ring`, which has room for twice the depth.
    ///
    /// # Errors
    ///
    /// The ring refuses the poll of the kick.
    pub fn engine<R: Ring + 'static>(
        &self,
        ring: R,
        setup: &EngineSetup<'_>,
    ) -> Result<Box<dyn IoEngine>, OpenError> {
        let engine = UringEngine::over(ring, Arc::clone(&self.disk), setup);
        Ok(Box::new(engine.map_err(OpenError::NoIoUring)?))
    }

    /// See [`crate::Backend::sync`]; `fdatasync` is the host's.
    ///
    /// # Errors
    ///
    /// The host's error, now or at an earlier flush.
    pub fn sync_with(&self, fdatasync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.disk.sync_with(fdatasync)
    }

    /// The open disk, as engines share it.
    #[cfg(test)]
    pub(crate) fn open_disk(&self) -> Arc<OpenDisk> {
        Arc::clone(&self.disk)
    }

    /// See [`crate::Backend::geometry`].
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    /// See [`crate::Backend::stop_holding`].
    pub fn stop_holding(&self) {
        self.disk.state.enospc.stop();
    }

    /// See [`crate::Backend::status`].
    #[must_use]
    pub fn status(&self) -> DiskStatus {
        self.disk.status()
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &DiskOptions {
        &self.disk.file.options
    }
}
