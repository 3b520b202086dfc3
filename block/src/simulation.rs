//! The interface of the simulator in `tests/`: the production engine over a simulated kernel.
//!
//! Not part of the crate's API. The seam is [`Ring`], the two queues of an io_uring: admission,
//! ring entries, the meaning of results, the latch and draining are the engine's own code. So is
//! the lock on the image: the open file descriptions are real, the simulated kernel keeps them.

mod ring_pool;

use std::fs::File;
use std::io;
use std::sync::Arc;

use self::ring_pool::RingPool;
use crate::disk_state::OpenDisk;
use crate::host_file::{DirectIo, EngineFiles, FileKind, HostFile, HostLimits, claim_if_free};
use crate::threads::ThreadEngine;
use crate::uring::UringEngine;
use crate::{
    DiskOptions, DiskStatus, EngineSetup, Geometry, IoEngine, OpenError, StableCopyMode, StoreFacts,
};

pub use crate::clock::Clock;
pub use crate::layers::{SimulatedLayers, SimulatedLevel, SimulatedSleep, SimulatedTop};
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

/// The open file descriptions of an engine, for the kernel to keep until it has completed the last
/// call on them. They hold the lock on the image.
#[derive(Debug)]
pub struct EngineDescriptions {
    _files: EngineFiles,
}

impl SimulatedDisk {
    /// Opens and locks `image`, a regular file that is neither read nor written; `None` while
    /// another description holds a conflicting lock. See [`SimulatedDisk::new`].
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn open(
        parameters: SimulatedParameters,
        clock: Clock,
        image: &File,
    ) -> io::Result<Option<Self>> {
        let file = claim_if_free(image, &parameters.options)?;
        Ok(file.map(|file| Self::new(parameters, clock, file)))
    }

    /// Opens the image for an engine.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn open_for_engine(&self) -> Result<EngineDescriptions, OpenError> {
        Ok(EngineDescriptions { _files: self.disk.file.open_for_engine()? })
    }

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
            dropped: Vec::new(),
        };
        let kind = if block_device { FileKind::BlockDevice } else { FileKind::Regular };
        let store = StoreFacts::default();
        let file = HostFile { path: "simulated".into(), file, kind, options, limits, store };
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

    /// Makes a thread-pool engine whose threads make their calls through `ring`. It has room for
    /// twice the depth.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn thread_engine<R: Ring + 'static>(
        &self,
        ring: R,
        setup: &EngineSetup<'_>,
    ) -> io::Result<Box<dyn IoEngine>> {
        let pool = RingPool::new(ring, setup.kick)?;
        Ok(Box::new(ThreadEngine::over(pool, Arc::clone(&self.disk), setup)?))
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
