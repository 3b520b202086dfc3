//! A recorded disk: forwards all to the disk below, whose engines it has recorded.

use std::any::Any;
use std::io;
use std::sync::Arc;

use super::engine::RecordedEngine;
use super::recording::Recording;
use crate::{
    Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiskStatus, EngineSetup, Extent,
    Geometry, IoEngine, OpenError, ResizeError,
};

/// See the module's documentation.
pub struct RecordedDisk {
    inner: Arc<dyn Backend>,
    recording: Arc<Recording>,
}

impl RecordedDisk {
    /// Records what passes `inner` from now on. No engine of it exists.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, recording: Arc<Recording>) -> Self {
        Self { inner, recording }
    }

    /// The disk below.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Backend> {
        &self.inner
    }

    /// Its recording.
    #[must_use]
    pub fn recording(&self) -> &Arc<Recording> {
        &self.recording
    }
}

impl Backend for RecordedDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn cache_mode(&self) -> CacheMode {
        self.inner.cache_mode()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        let inner = self.inner.engine(setup)?;
        let refused = |source| OpenError::Host {
            path: self.recording.status().path,
            what: "get a descriptor to record a queue",
            source,
        };
        let Some(recorder) = self.recording.record_queue(setup).map_err(refused)? else {
            return Ok(inner);
        };
        Ok(Box::new(RecordedEngine::new(inner, recorder, Arc::clone(&self.recording))))
    }

    fn status(&self) -> DiskStatus {
        self.inner.status()
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn stop_holding(&self) {
        self.inner.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        self.inner.allocation(from, limit)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.inner.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.inner.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let before = self.geometry().capacity;
        // No write beyond the end of the base is recorded: the guest can write there as soon as the
        // disk has grown.
        if size.is_some_and(|size| size > before) {
            self.recording.end_at_resize();
        }
        let resized = self.inner.resize(size);
        if self.geometry().capacity != before {
            self.recording.end_at_resize();
        }
        resized
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
