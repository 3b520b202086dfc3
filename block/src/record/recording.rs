//! A recording: its log thread, and what the control plane does with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::base::BaseSamples;
use super::channel::Channel;
use super::chunk::CHUNK;
use super::format::LogSuper;
use super::log_file::{Log, LogStore, create};
use super::queue::QueueRecorder;
use super::recorder::{Lane, MarkError, RESIZED, RecordStatus, Recorder};
use super::writer::{SizeLimit, Writer};
use crate::kick::Kick;
use crate::{Backend, EngineSetup, OpenError};

/// Chunks of a queue: 16 MiB for data that is not in the log yet.
const CHUNKS: u32 = 4096;
/// Most memory for the data of one recorded queue, in bytes.
pub const RECORD_QUEUE_BYTES: u64 = CHUNKS as u64 * CHUNK as u64;
/// Why the recording of a disk that is not used any more ended.
const CLOSED: &str = "the disk was closed";
/// How long the storage of a log may take for an answer to the control plane.
const PATIENCE: Duration = Duration::from_secs(10);

/// A log without a limit leaves this part of the space that was free at its start, which the disk
/// and others may need: a tenth.
const RESERVE: u64 = 10;

/// The log of a disk that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// Its file: a new or an empty one.
    pub path: PathBuf,
    /// The bytes at which the recording ends; `None` to end when a tenth is left of the space that
    /// was free in the file system of the log at the start.
    pub limit: Option<u64>,
}

impl RecordOptions {
    /// A log without a limit of its own.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), limit: None }
    }
}

/// The parameters of a recording.
pub(super) struct Start<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    pub(super) head: LogSuper,
    pub(super) limit: SizeLimit,
}

/// A recording. The last one of its disk and its engines closes the log.
#[derive(Debug)]
pub struct Recording {
    recorder: Arc<Recorder>,
    chunks: u32,
    /// The storage of the log did not answer in time. It is not waited for again.
    is_given_up: AtomicBool,
}

impl Recording {
    /// Starts the log of a disk that nothing uses yet, and which is called `name`. Reads samples of
    /// it.
    ///
    /// # Errors
    ///
    /// The file is not empty, in use or cannot be written; the disk gives no engine; or the host
    /// refuses the thread.
    pub fn start(
        name: &str,
        disk: &dyn Backend,
        options: &RecordOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let RecordOptions { path, limit } = options;
        let file = create(path)?;
        let query = |source| OpenError::Host { path: path.clone(), what: "query it", source };
        let limit = match limit {
            Some(limit) => SizeLimit::Bytes(*limit),
            None => SizeLimit::Reserve(file.free_bytes().map_err(query)? / RESERVE),
        };
        let base = BaseSamples::take(disk)?;
        let start = Start { name, path, head: LogSuper::new(0, Some(base)), limit };
        Self::start_in(&start, Box::new(file), CHUNKS)
    }

    /// Starts a log in `store`. Each queue has `chunks` chunks.
    pub(super) fn start_in(
        start: &Start<'_>,
        store: Box<dyn LogStore>,
        chunks: u32,
    ) -> Result<Arc<Self>, OpenError> {
        let Start { name, path, head, limit } = start;
        let host_error =
            |what| move |source| OpenError::Host { path: path.to_path_buf(), what, source };
        let log = Log::start(store, *head).map_err(host_error("write the log"))?;
        let recorder = Arc::new(Recorder::new(name, path.to_path_buf()));
        let writer = Writer::new(Arc::clone(&recorder), log, *limit);
        let thread = thread::Builder::new()
            .name(format!("{name}/record"))
            .spawn(|| writer.run())
            .map_err(host_error("start the thread of the log"))?;
        recorder.set_log_thread(thread.thread().clone());
        Ok(Arc::new(Self { recorder, chunks, is_given_up: AtomicBool::new(false) }))
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
        self.wait_closed(PATIENCE)
    }

    fn wait_closed(&self, patience: Duration) -> bool {
        let is_closed = self.recorder.wait_finished(patience);
        if !is_closed {
            let (disk, log) = (&self.recorder.disk, self.recorder.path.display());
            tracing::error!(disk, %log, "the storage of the log does not answer; it is not closed");
            self.is_given_up.store(true, Ordering::Relaxed);
        }
        is_closed
    }

    /// Ends the recording of a disk that no guest uses any more, as dropping all parts of it does.
    /// Returns whether the log is closed.
    pub fn close(&self) -> bool {
        Self::close_all([self])
    }

    /// As [`close`](Self::close), of several disks side by side: for ten seconds for all.
    pub fn close_all<'r>(recordings: impl IntoIterator<Item = &'r Self>) -> bool {
        let recordings: Vec<_> = recordings.into_iter().collect();
        recordings.iter().for_each(|recording| recording.recorder.stop(CLOSED, false));
        let until = Instant::now() + PATIENCE;
        let left = || until.saturating_duration_since(Instant::now());
        recordings.iter().filter(|recording| !recording.wait_closed(left())).count() == 0
    }

    /// The disk gets another size, which the log cannot say.
    pub(super) fn end_at_resize(&self) {
        self.recorder.stop(RESIZED, true);
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
        if !*self.is_given_up.get_mut() {
            self.close();
        }
    }
}
