//! A recording: its log thread, and what the control plane does with it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::channel::Channel;
use super::chunk::CHUNK;
use super::log_file::{Log, LogStore, create};
use super::queue::QueueRecorder;
use super::recorder::{Lane, MarkError, RecordStatus, Recorder};
use super::writer::Writer;
use crate::kick::Kick;
use crate::{EngineSetup, OpenError};

/// Chunks of a queue: 16 MiB for data that is not in the log yet.
const CHUNKS: u32 = 4096;
/// Most memory for the data of one recorded queue, in bytes.
pub const RECORD_QUEUE_BYTES: u64 = CHUNKS as u64 * CHUNK as u64;
/// How long the storage of a log may take for an answer to the control plane.
const PATIENCE: Duration = Duration::from_secs(10);

/// A recording. The last one of its disk and its engines closes the log.
#[derive(Debug)]
pub struct Recording {
    recorder: Arc<Recorder>,
    chunks: u32,
}

impl Recording {
    /// Starts the log `path` of the disk called `disk`.
    ///
    /// # Errors
    ///
    /// The file is not empty, in use or cannot be written; or the host refuses the thread.
    pub fn start(disk: &str, path: &Path) -> Result<Arc<Self>, OpenError> {
        Self::start_in(disk, path, Box::new(create(path)?), CHUNKS)
    }

    /// Starts a log in `store`. Each queue has `chunks` chunks.
    pub(super) fn start_in(
        disk: &str,
        path: &Path,
        store: Box<dyn LogStore>,
        chunks: u32,
    ) -> Result<Arc<Self>, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: path.to_owned(), what, source };
        let log = Log::start(store).map_err(host_error("write the log"))?;
        let recorder = Arc::new(Recorder::new(disk, path.to_owned()));
        let writer = Writer::new(Arc::clone(&recorder), log);
        let thread = thread::Builder::new()
            .name(format!("{disk}/record"))
            .spawn(|| writer.run())
            .map_err(host_error("start the thread of the log"))?;
        recorder.set_log_thread(thread.thread().clone());
        Ok(Arc::new(Self { recorder, chunks }))
    }

    /// The state now. Never blocks.
    #[must_use]
    pub fn status(&self) -> RecordStatus {
        self.recorder.status()
    }

    /// Makes a mark: after all requests that have completed, and before those that are issued when
    /// this returns. Blocks while the log is written.
    ///
    /// # Errors
    ///
    /// See [`MarkError`].
    pub fn mark(&self, text: &str) -> Result<(), MarkError> {
        self.recorder.mark(text, PATIENCE)
    }

    /// Ends the recording for good, and closes the log. Blocks while it is written, for ten seconds
    /// at most. Returns whether it is closed.
    pub fn stop(&self, reason: &str) -> bool {
        self.recorder.stop(reason, false);
        let is_closed = self.recorder.wait_finished(PATIENCE);
        if !is_closed {
            let (disk, log) = (&self.recorder.disk, self.recorder.path.display());
            tracing::error!(disk, %log, "the storage of the log does not answer; it is not closed");
        }
        is_closed
    }

    /// Ends the recording of a disk that no guest uses any more, as dropping all parts of it does.
    /// Returns whether the log is closed.
    pub fn close(&self) -> bool {
        self.stop("the disk was closed")
    }

    /// Queues that have memory.
    #[cfg(test)]
    pub(super) fn queues(&self) -> usize {
        self.recorder.queues()
    }

    /// Starts to record a queue; `None` once the recording has ended.
    pub(super) fn record_queue(
        &self,
        setup: &EngineSetup<'_>,
    ) -> io::Result<Option<QueueRecorder>> {
        if self.recorder.end().is_some() {
            return Ok(None);
        }
        let kick = Kick::new(setup.kick)?;
        let mut free = Vec::new();
        let lane = self.recorder.add_lane(|queue| {
            let (channel, chunks) = Channel::new(queue, self.chunks);
            free = chunks;
            Arc::new(Lane { channel, kick })
        });
        let recorder = || Arc::clone(&self.recorder);
        Ok(lane.map(|lane| QueueRecorder::new(recorder(), lane, free, setup.depth)))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.close();
    }
}
