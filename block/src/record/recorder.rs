//! The state of a recording, shared by the queues of the disk, the log thread and the control
//! plane.

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::format::MARK_MAX;
use super::log_file::LogExtent;
use crate::kick::Kick;

/// How long the guest waits for the log at most: file systems stall writers for a second now and
/// then.
pub(super) const GUEST_PATIENCE: Duration = Duration::from_secs(2);

/// Why the recording of a disk that was resized ended.
pub(super) const RESIZED: &str =
    "the disk was resized, which a log cannot have; start a new one when it is next opened";

/// The queues of a disk.
#[derive(Debug, Default)]
struct Lanes {
    /// Those that are served, and those that are over but not yet in the log.
    all: Vec<Arc<Lane>>,
    /// The most that were served at a time.
    most: usize,
}

impl Lanes {
    fn served(&self) -> usize {
        self.all.iter().filter(|lane| !lane.channel.is_closed()).count()
    }

    /// Whether one more would have more memory than the queues of the disk may.
    fn is_full(&self) -> bool {
        self.served() < self.all.len() && self.all.len() >= self.most
    }
}

/// A queue as the log thread sees it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) channel: Channel,
    pub(super) kick: Kick,
}

/// Why a recording ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordEnd {
    /// The reason, as in the log.
    pub reason: String,
    /// It ended too early.
    pub is_failure: bool,
}

/// State of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordStatus {
    /// The log.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its entries.
    pub entries: u64,
    /// Why it ended; `None` before that.
    pub end: Option<RecordEnd>,
}

/// Why a mark was not made.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Its text is unsuitable.
    #[error("a mark has 1 to {} bytes of UTF-8 without control characters", MARK_MAX)]
    Text,
    /// The recording ended before.
    #[error("the recording has ended: {0}")]
    Ended(String),
    /// The log thread did not answer.
    #[error("the storage of the log does not answer; the mark may be made later")]
    NoAnswer,
}

/// A mark that is to be written.
#[derive(Debug)]
pub(super) struct PendingMark {
    pub(super) text: String,
    /// It follows the requests that had completed when it was made, as many as this.
    pub(super) after: u64,
    pub(super) issue: u64,
    pub(super) made_ns: u64,
    pub(super) written: mpsc::Sender<()>,
}

/// A number that several threads change, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicU64);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The disk's name.
    pub(super) disk: String,
    pub(super) path: PathBuf,
    epoch: Instant,
    active: AtomicBool,
    issued: Counter,
    completed: Counter,
    lanes: Mutex<Lanes>,
    /// Queues were removed, or the recording has ended.
    lanes_removed: Condvar,
    lanes_changed: AtomicBool,
    marks: Mutex<Vec<PendingMark>>,
    has_marks: AtomicBool,
    end: OnceLock<RecordEnd>,
    log_thread: OnceLock<Thread>,
    entries: AtomicU64,
    bytes: AtomicU64,
    finished: Mutex<bool>,
    finish: Condvar,
}

impl Recorder {
    pub(super) fn new(disk: &str, path: PathBuf) -> Self {
        Self {
            disk: disk.to_owned(),
            path,
            epoch: Instant::now(),
            active: AtomicBool::new(true),
            issued: Counter::default(),
            completed: Counter::default(),
            lanes: Mutex::default(),
            lanes_removed: Condvar::new(),
            lanes_changed: AtomicBool::new(false),
            marks: Mutex::default(),
            has_marks: AtomicBool::new(false),
            end: OnceLock::new(),
            log_thread: OnceLock::new(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            finished: Mutex::new(false),
            finish: Condvar::new(),
        }
    }

    /// Whether requests are recorded.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the start.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The number of the next request in the order of issue, and how many have completed. For a
    /// request that the disk does not have yet.
    ///
    /// Each completion whose number is below the latter was taken out of the disk before, so that a
    /// flush which is pushed afterwards covers it: `complete` releases, and this acquires.
    pub(super) fn issue(&self) -> (u64, u64) {
        let completed = self.completed();
        (self.issued.0.fetch_add(1, Ordering::Relaxed), completed)
    }

    /// How many requests have completed.
    fn completed(&self) -> u64 {
        self.completed.0.load(Ordering::Acquire)
    }

    /// The first of `count` numbers in the order of completion. For completions that the disk has
    /// handed out and the guest does not have yet: what the guest issues because of one is issued
    /// after more completions than its number.
    pub(super) fn complete(&self, count: u64) -> u64 {
        self.completed.0.fetch_add(count, Ordering::AcqRel)
    }

    /// Adds a queue; `None` once the recording has ended.
    ///
    /// A guest may reset its device faster than the log is written. So a new queue waits until one
    /// that is over is in the log, if there are as many as were ever served at a time.
    pub(super) fn add_lane(&self, make: impl FnOnce(u16) -> Arc<Lane>) -> Option<Arc<Lane>> {
        let is_full = |lanes: &mut Lanes| lanes.is_full() && self.end().is_none();
        let lanes = lock(&self.lanes);
        let waited = self.lanes_removed.wait_timeout_while(lanes, GUEST_PATIENCE, is_full);
        let (mut lanes, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            drop(lanes);
            self.stop("the storage of the log is too slow for the guest's resets", true);
            return None;
        }
        // Under the lock: `set_finished` comes after the end, and removes those of before.
        if self.end().is_some() {
            return None;
        }
        let is_free = |number: &u16| lanes.all.iter().all(|lane| lane.channel.queue != *number);
        let lane = make((0..u16::MAX).find(is_free).unwrap_or(u16::MAX));
        lanes.all.push(Arc::clone(&lane));
        lanes.most = lanes.most.max(lanes.served());
        self.lanes_changed.store(true, Ordering::Release);
        Some(lane)
    }

    #[cfg(test)]
    pub(super) fn queues(&self) -> usize {
        lock(&self.lanes).all.len()
    }

    /// The log thread: the queues if there are new ones.
    pub(super) fn changed_lanes(&self) -> Option<Vec<Arc<Lane>>> {
        let is_changed = self.lanes_changed.load(Ordering::Acquire)
            && self.lanes_changed.swap(false, Ordering::AcqRel);
        is_changed.then(|| lock(&self.lanes).all.clone())
    }

    /// The log thread: removes a queue that is over.
    pub(super) fn remove_lane(&self, lane: &Arc<Lane>) {
        lock(&self.lanes).all.retain(|other| !Arc::ptr_eq(other, lane));
        self.lanes_removed.notify_all();
    }

    /// Names the log thread, once.
    pub(super) fn set_log_thread(&self, thread: Thread) {
        let _ = self.log_thread.set(thread);
    }

    /// Wakes the log thread: a system call only if it sleeps.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.log_thread.get() {
            thread.unpark();
        }
    }

    /// Ends the recording. The first reason counts.
    pub(super) fn stop(&self, reason: &str, is_failure: bool) {
        let end = RecordEnd { reason: reason.to_owned(), is_failure };
        if self.end.set(end).is_ok() && is_failure {
            let (disk, log) = (&self.disk, self.path.display());
            tracing::error!(disk, %log, "the recording stopped, without harm to the guest: {reason}");
        }
        self.active.store(false, Ordering::SeqCst);
        // Those that hold requests push them.
        lock(&self.lanes).all.iter().for_each(|lane| lane.kick.signal());
        self.lanes_removed.notify_all();
        self.wake();
    }

    /// Why the recording has ended, or is about to.
    pub(super) fn end(&self) -> Option<&RecordEnd> {
        self.end.get()
    }

    /// Makes a mark, and waits until it is in the log.
    pub(super) fn mark(&self, text: &str, patience: Duration) -> Result<(), MarkError> {
        if !is_mark_text(text) {
            return Err(MarkError::Text);
        }
        let (written, answer) = mpsc::channel();
        lock(&self.marks).push(PendingMark {
            text: text.to_owned(),
            after: self.completed(),
            issue: self.issued.0.load(Ordering::Relaxed),
            made_ns: self.now_ns(),
            written,
        });
        self.has_marks.store(true, Ordering::SeqCst);
        self.wake();
        let ended = || self.end().map(|end| MarkError::Ended(end.reason.clone()));
        if self.is_finished() {
            self.drop_marks();
        }
        match answer.recv_timeout(patience) {
            Ok(()) => Ok(()),
            Err(_) => Err(ended().unwrap_or(MarkError::NoAnswer)),
        }
    }

    /// The log thread: takes the marks that follow `completed` requests or fewer.
    pub(super) fn take_marks(&self, completed: u64) -> Vec<PendingMark> {
        if !self.has_marks.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut marks = lock(&self.marks);
        let (due, later) = marks.drain(..).partition(|mark| mark.after <= completed);
        *marks = later;
        self.has_marks.store(!marks.is_empty(), Ordering::Relaxed);
        due
    }

    fn drop_marks(&self) {
        lock(&self.marks).clear();
    }

    /// The log thread: how far the file of the log is.
    pub(super) fn set_progress(&self, written: LogExtent) {
        self.bytes.store(written.bytes, Ordering::Relaxed);
        self.entries.store(written.entries, Ordering::Relaxed);
    }

    /// The log thread: it is done. No other thread removes queues.
    pub(super) fn set_finished(&self) {
        let lanes = mem::take(&mut lock(&self.lanes).all);
        // `stop`, which may be on its way, does not find them any more.
        self.active.store(false, Ordering::SeqCst);
        lanes.iter().for_each(|lane| lane.kick.signal());
        *lock(&self.finished) = true;
        self.drop_marks();
        self.finish.notify_all();
    }

    fn is_finished(&self) -> bool {
        *lock(&self.finished)
    }

    /// Waits until the log thread is done. Returns whether it is.
    pub(super) fn wait_finished(&self, patience: Duration) -> bool {
        let finished = lock(&self.finished);
        let waited = self.finish.wait_timeout_while(finished, patience, |finished| !*finished);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn status(&self) -> RecordStatus {
        RecordStatus {
            path: self.path.clone(),
            bytes: self.bytes.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            end: self.end().cloned(),
        }
    }
}

/// Whether a mark may have this text.
pub(super) fn is_mark_text(text: &str) -> bool {
    (1..=MARK_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is complete when the lock is released, also by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
