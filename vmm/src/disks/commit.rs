//! Commits of frozen layers while the machine runs, on a thread of their own: at most one at a
//! time, of one disk after the other.

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use block::{LayerMerge, LayeredDisk, MergeError, MergeProgress, MergedLayer};
use thiserror::Error;

use super::events::{EventKind, EventLog};
use super::registry::{DiskRegistry, ManagedDisk};

/// Longest time for the requests in flight and the flush at the end.
const LIMIT: Duration = Duration::from_secs(5);

/// The commit that runs, or the last one.
#[derive(Default)]
pub(crate) struct Commits {
    /// Locked while a commit begins, which may wait for the host.
    start: Mutex<()>,
    list: Mutex<Vec<Arc<DiskCommit>>>,
}

/// The commit of one disk.
pub(crate) struct DiskCommit {
    pub(crate) id: String,
    /// The layer and its base.
    pub(crate) layer: PathBuf,
    pub(crate) base: PathBuf,
    /// Bytes that the layer answers for.
    pub(crate) bytes: u64,
    progress: MergeProgress,
    started: OnceLock<Instant>,
    end: OnceLock<CommitEnd>,
}

struct CommitEnd {
    elapsed: Duration,
    result: Result<MergedLayer, MergeError>,
}

/// The state of the commit of one disk.
pub(crate) enum CommitState<'c> {
    /// Another disk is first.
    Waiting,
    Running,
    Merged(&'c MergedLayer),
    Stopped,
    Failed(&'c MergeError),
}

/// Why no commit was started.
#[derive(Debug, Error)]
pub(crate) enum CommitFailure {
    /// One runs.
    #[error("a commit is running")]
    Running,
    /// There is no such disk.
    #[error("there is no disk {0:?}")]
    Unknown(String),
    /// The disk has no layers.
    #[error("{0} is no layer")]
    NoLayer(String),
    /// No disk has a frozen layer.
    #[error("no disk has a frozen layer that a snapshot has made")]
    NoDisks,
    /// The disk is being detached.
    #[error("{0} is being detached")]
    Detaching(String),
    /// A disk refuses, or the host.
    #[error(transparent)]
    Disk(#[from] MergeError),
    /// The host is out of threads.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread ended before it had begun.
    #[error("the commit did not begin")]
    Lost,
}

impl DiskCommit {
    /// Bytes that were merged.
    pub(crate) fn done(&self) -> u64 {
        self.progress.bytes().0
    }

    /// Since the start of this disk's part, or how long it took.
    pub(crate) fn elapsed(&self) -> Duration {
        let since = || self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        self.end.get().map_or_else(since, |end| end.elapsed)
    }

    pub(crate) fn state(&self) -> CommitState<'_> {
        match self.end.get().map(|end| &end.result) {
            Some(Ok(merged)) => CommitState::Merged(merged),
            Some(Err(MergeError::Stopped)) => CommitState::Stopped,
            Some(Err(error)) => CommitState::Failed(error),
            None if self.started.get().is_some() => CommitState::Running,
            None => CommitState::Waiting,
        }
    }
}

impl Commits {
    /// The commits of the disks, in order.
    pub(crate) fn all(&self) -> Vec<Arc<DiskCommit>> {
        self.lock().clone()
    }

    /// Stops the commits after a piece.
    pub(crate) fn stop(&self) {
        self.lock().iter().for_each(|commit| commit.progress.stop());
    }

    /// Starts to merge the frozen layer below each of these disks, or of all that have one that a
    /// snapshot has made. With `force` also if other layers cannot be used afterwards.
    ///
    /// # Errors
    ///
    /// See [`CommitFailure`]. No layer is merged.
    pub(crate) fn start(
        &self,
        disks: &DiskRegistry,
        events: &Arc<EventLog>,
        ids: &[String],
        force: bool,
    ) -> Result<(), CommitFailure> {
        let disks = if ids.is_empty() {
            all(disks)?
        } else {
            disks.named(ids).map_err(CommitFailure::Unknown)?
        };
        let _start = match self.start.try_lock() {
            Ok(start) => start,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(CommitFailure::Running),
        };
        if self.lock().iter().any(|commit| commit.end.get().is_none()) {
            return Err(CommitFailure::Running);
        }
        let (sender, begun) = sync_channel(1);
        let events = Arc::clone(events);
        let thread = thread::Builder::new().name("commit".to_owned());
        // Never joined: the host may keep it, and an interruption at any point is legal.
        let thread = thread.spawn(move || merge_all(&disks, force, &events, &sender));
        thread.map_err(CommitFailure::Thread)?;
        let commits = begun.recv().map_err(|_| CommitFailure::Lost)??;
        *self.lock() = commits;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<DiskCommit>>> {
        // The list is complete between any two changes, so a poisoned lock is usable.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop();
    }
}

type Begun = Result<Vec<Arc<DiskCommit>>, CommitFailure>;

/// Begins the merges of all disks, tells so, and runs one after the other.
fn merge_all(
    disks: &[Arc<ManagedDisk>],
    force: bool,
    events: &EventLog,
    begun: &SyncSender<Begun>,
) {
    let mut merges = Vec::new();
    for disk in disks {
        match begin(disk, force) {
            Ok(merge) => merges.push(merge),
            Err(failure) => {
                drop(merges);
                _ = begun.send(Err(failure));
                return;
            }
        }
    }
    let commits: Vec<_> =
        disks.iter().zip(&merges).map(|(disk, merge)| commit(disk, merge)).collect();
    _ = begun.send(Ok(commits.clone()));
    for (commit, merge) in commits.iter().zip(merges) {
        run(commit, merge, events);
    }
}

/// Runs the merge of one disk.
fn run(commit: &DiskCommit, merge: LayerMerge<'_>, events: &EventLog) {
    let started = *commit.started.get_or_init(Instant::now);
    let result = merge.run(&commit.progress, LIMIT);
    let (disk, layer, base) = (&commit.id, commit.layer.display(), commit.base.display());
    match &result {
        Ok(_) => {
            tracing::info!(disk, %layer, %base, "layer merged");
            events.add(EventKind::LayerMerged, disk, format!("{layer} is merged into {base}"));
        }
        Err(MergeError::Stopped) => tracing::info!(disk, %layer, "the commit was stopped"),
        Err(error) => tracing::error!(disk, %error, "the commit failed"),
    }
    _ = commit.end.set(CommitEnd { elapsed: started.elapsed(), result });
}

fn begin(disk: &ManagedDisk, force: bool) -> Result<LayerMerge<'_>, CommitFailure> {
    let id = || disk.config.id().to_owned();
    let layers = disk.layers().ok_or_else(|| CommitFailure::NoLayer(id()))?;
    let merge = LayerMerge::begin(layers, force)?;
    // A detach looks for a merge after it has begun.
    if disk.is_detaching() {
        return Err(CommitFailure::Detaching(id()));
    }
    Ok(merge)
}

fn commit(disk: &ManagedDisk, merge: &LayerMerge<'_>) -> Arc<DiskCommit> {
    Arc::new(DiskCommit {
        id: disk.config.id().to_owned(),
        layer: merge.layer().to_owned(),
        base: merge.base().to_owned(),
        bytes: merge.bytes(),
        progress: MergeProgress::default(),
        started: OnceLock::new(),
        end: OnceLock::new(),
    })
}

/// All disks with a frozen layer that a snapshot may have made.
fn all(disks: &DiskRegistry) -> Result<Vec<Arc<ManagedDisk>>, CommitFailure> {
    let mut disks = disks.all();
    disks.retain(|disk| {
        let has_one = disk.layers().is_some_and(LayeredDisk::has_frozen_layer);
        has_one && !disk.config.options.read_only && disk.config.ephemeral.is_none()
    });
    if disks.is_empty() { Err(CommitFailure::NoDisks) } else { Ok(disks) }
}
