//! A commit of a disk that is in use: the frozen layer directly below its top is merged into its
//! base while the guest runs.
//!
//! While the layer is copied it hides each block of its base that changes, so that requests are
//! served as before, from all levels. Then the top is put on the base ([`mod@finish`]), and the
//! layer is [retired](leftover). An interruption at any point leaves a disk that reads the same,
//! and a merge that can be begun again.

mod error;
mod finish;
mod leftover;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

pub use self::error::MergeError;
use self::error::{HOLDS, refused};
use self::finish::{Switched, finish};
use self::leftover::{clear_leftover_of, retire_layer};
use super::disk::{DiskFiles, LayeredDisk};
use super::file::{base_path, host_error, read_header};
use super::header::Header;
use super::map::LayerMap;
use super::map_file::read_map;
use super::new_file::folder;
use super::offline::{
    ChangedTop, MergeBase, begin, copy_all, neighbours, others, require_unchanged_below,
    write_options,
};
use super::succession::is_at;
use super::unit::BLOCK;
use crate::sys::lower_priority;
use crate::{Backend, DiskFormat, DiskOptions, FileIdentity, OpenError, RawFile};

/// Bytes of the base that are in the host's memory only: a flush of the guest may have to wait for
/// them.
const DIRTY_MAX: u64 = 16 << 20;

/// The progress of a merge, and where it is stopped. Any thread.
#[derive(Debug)]
pub struct MergeProgress {
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes after which the merge is stopped.
    most: AtomicU64,
}

impl Default for MergeProgress {
    fn default() -> Self {
        Self::of_at_most(u64::MAX)
    }
}

impl MergeProgress {
    /// That of a merge that is stopped after the piece with which it has this many bytes.
    #[must_use]
    pub fn of_at_most(bytes: u64) -> Self {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { done, total, most: AtomicU64::new(bytes) }
    }

    /// Bytes that were merged, and bytes of all.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Stops the merge after a piece of it.
    pub fn stop(&self) {
        self.most.store(0, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.bytes().0 >= self.most.load(Ordering::Relaxed)
    }
}

/// A frozen layer that was merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedLayer {
    /// The layer.
    pub layer: PathBuf,
    /// Its base, on which the top stands now.
    pub base: PathBuf,
    /// Bytes that the layer answered for.
    pub merged: u64,
    /// Why the layer is still there, if it is: others stand on it, or it cannot be removed.
    pub kept: Option<String>,
    /// From the hold of the disk to its release, without the flush.
    pub held: Duration,
    /// The flush of what the disk had written when it was held.
    pub flush: Duration,
}

/// A merge that can be run. While there is one, the disk has no snapshot made, and other processes
/// use neither the layer nor its base.
#[derive(Debug)]
pub struct LayerMerge<'d> {
    // Dropped first: the locks of a reader, before those of the writer are released.
    _layer_lease: Leased,
    _base_lease: Leased,
    disk: &'d LayeredDisk,
    files: Arc<DiskFiles>,
    layer: ChangedTop,
    map: LayerMap,
    base: MergeBase,
    _mark: Mark<'d>,
}

/// The mark of a disk that has a merge.
#[derive(Debug)]
struct Mark<'d>(&'d AtomicBool);

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A file that this process may write, although it reads it for the disk as well. It has no other
/// owner that outlives it, except those that are dropped after it.
#[derive(Debug)]
struct Leased {
    // Dropped first.
    _lease: Lease,
    writer: Arc<RawFile>,
}

impl Leased {
    /// Locks the file for a writer.
    fn of(reader: &Arc<RawFile>, options: &DiskOptions) -> Result<Self, OpenError> {
        let writer = Arc::new(reader.writer(options)?);
        Ok(Self { _lease: Lease(Arc::clone(reader)), writer })
    }

    fn writer(&self) -> Arc<RawFile> {
        Arc::clone(&self.writer)
    }
}

/// The reader of a file that is leased. It denies changes again when it is dropped.
#[derive(Debug)]
struct Lease(Arc<RawFile>);

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.0.deny_changes() {
            tracing::error!(%error, "the lock on a file below a layer is lost");
        }
    }
}

impl<'d> LayerMerge<'d> {
    /// Locks the frozen layer directly below the top of the disk, and its base, to merge the one
    /// into the other. Changes nothing. With `force` also if other layers stand on the base, which
    /// cannot be used afterwards.
    ///
    /// # Errors
    ///
    /// The disk has no frozen layer, or not one that can be merged; another process uses one of the
    /// files; the base has changed; other layers stand on the base, without `force`; or the host's
    /// error.
    pub fn begin(disk: &'d LayeredDisk, force: bool) -> Result<Self, MergeError> {
        let (mark, files, header) = occupy(disk)?;
        clear_leftover_of(disk)?;
        let Some([layer_file, base_file]) = files.below.first_chunk() else {
            let base = base_path(disk.path(), &header);
            let why = format!(
                "it stands on {} directly, and has no frozen layer below it that could be merged",
                base.display()
            );
            return Err(refused(disk.path(), why));
        };
        let path = layer_path(disk, &header, layer_file)?;
        let options = DiskOptions { format: DiskFormat::Raw, ..write_options() };
        // Before what has a writer of it: a step that fails leaves no moment without a lock.
        let layer_lease = Leased::of(layer_file, &options)?;
        let file = layer_lease.writer();
        let found = read_header(file.file(), &path)?;
        let layer = ChangedTop { path, file, header: found };
        let path_of_base = base_path(&layer.path, &layer.header);
        if !is_file(base_file, &path_of_base)? {
            return Err(refused(
                &path_of_base,
                "it was moved while the machine runs; move it back",
            ));
        }
        let base_lease = Leased::of(base_file, &options)?;
        let base = MergeBase::of(&layer, &path_of_base, base_lease.writer())?;
        require_unchanged_below(&layer.path, &layer.header)?;
        base.require_room(&layer)?;
        let map = read_map(layer.file.file(), &layer.path, &layer.header)?;
        let merge = Self {
            _layer_lease: layer_lease,
            _base_lease: base_lease,
            disk,
            files: Arc::clone(&files),
            layer,
            map,
            base,
            _mark: mark,
        };
        if merge.changes_base() && !force {
            let (layer, base) = (&merge.layer, merge.base.path());
            let broken = neighbours(&layer.path, &layer.header.base, base);
            if !broken.is_empty() {
                return Err(others(base, &broken).into());
            }
        }
        Ok(merge)
    }

    /// The layer that is merged.
    #[must_use]
    pub fn layer(&self) -> &Path {
        &self.layer.path
    }

    /// Its base.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    /// Bytes that the layer answers for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.map.count() * BLOCK
    }

    /// Whether the base changes: not if the layer is empty, or all of it was merged before.
    fn changes_base(&self) -> bool {
        let is_empty = self.bytes() == 0 && self.base.size() >= self.layer.header.size;
        let is_merged = self.layer.header.merge.is_some_and(|merge| {
            let base = self.base.layer();
            base.is_some_and(|base| base.frozen == Some(merge) && !base.is_receiving)
        });
        let is_begun = self.layer.header.merge.is_some();
        !is_merged && (is_begun || !is_empty)
    }

    /// Merges the layer, and puts the top of the disk on its base. Requests are held for a moment
    /// at the end; `limit` is the longest time for those in flight to complete, and with them a
    /// flush. Blocks.
    ///
    /// # Errors
    ///
    /// It was stopped, requests did not complete in time, or the host's error. The disk reads as
    /// before, and a merge can be begun again.
    pub fn run(
        mut self,
        progress: &MergeProgress,
        limit: Duration,
    ) -> Result<MergedLayer, MergeError> {
        let merged = self.bytes();
        progress.total.store(merged, Ordering::Relaxed);
        let base_map = self.copy_in_background(progress)?;
        progress.done.store(merged, Ordering::Relaxed);
        let (disk, files) = (self.disk, &self.files);
        let Switched { held, flush } =
            finish(disk, files, (&self.layer, &self.base), base_map, limit)?;
        let kept = retire_layer(disk, &files.top, &mut self.layer, &self.base);
        let (layer, base) = (self.layer.path.clone(), self.base.path().to_owned());
        Ok(MergedLayer { layer, base, merged, kept, held, flush })
    }

    /// [`Self::copy`] on a thread of low priority. The rest is not: it holds requests.
    fn copy_in_background(
        &mut self,
        progress: &MergeProgress,
    ) -> Result<Option<LayerMap>, MergeError> {
        let path = self.layer.path.clone();
        let copy = move || {
            lower_priority();
            self.copy(progress)
        };
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("commit/copy".to_owned());
            let thread = builder.spawn_scoped(scope, copy);
            let thread = thread.map_err(host_error(&path, "start a thread for its merge"))?;
            let panicked = || Err(refused(&path, "the thread that merges it panicked"));
            thread.join().unwrap_or_else(|_| panicked())
        })
    }

    /// Copies the layer to its base. Returns the map of a base that is a layer.
    fn copy(&mut self, progress: &MergeProgress) -> Result<Option<LayerMap>, MergeError> {
        if progress.is_stopped() {
            return Err(MergeError::Stopped);
        }
        if !self.changes_base() {
            // So that it is known as merged when it is a leftover.
            if self.layer.header.merge.is_none() {
                begin(&mut self.layer, &self.base)?;
            }
            return Ok(self.base.map()?);
        }
        self.base.lengthen(&self.layer)?;
        let id = begin(&mut self.layer, &self.base)?;
        self.base.begin(&mut self.layer, id)?;
        let base_map = self.base.map()?;
        let (mut done, mut synced) = (0, 0);
        let after_piece = |bytes| {
            done += bytes;
            progress.done.store(done, Ordering::Relaxed);
            if progress.is_stopped() {
                return Err(MergeError::Stopped);
            }
            if done - synced >= DIRTY_MAX {
                synced = done;
                self.base.sync_data()?;
            }
            Ok(())
        };
        copy_all(&self.layer, self.map.share(), &self.base, base_map.as_ref(), after_piece)?;
        self.base.finish()?;
        Ok(base_map)
    }
}

impl LayeredDisk {
    /// Whether a layer of it is being merged.
    pub fn is_merging(&self) -> bool {
        self.is_merging.load(Ordering::Acquire)
    }

    /// Whether it has a frozen layer directly below its top that a snapshot of it may have made.
    pub fn has_frozen_layer(&self) -> bool {
        let header = self.header.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match self.files().below.as_slice() {
            [layer, _, ..] => layer_path(self, &header, layer).is_ok(),
            _ => false,
        }
    }
}

/// Marks the disk as one with a merge, if it can have one.
fn occupy(disk: &LayeredDisk) -> Result<(Mark<'_>, Arc<DiskFiles>, Header), MergeError> {
    let path = disk.path();
    // A snapshot has it for as long as it lasts.
    let header = match disk.header.try_lock() {
        Ok(header) => header,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            let why = "it is being resized, or has a snapshot made; try again";
            return Err(refused(path, why));
        }
    };
    let files = disk.files();
    let reason = if files.levels.top.budget.is_some() {
        "the disk over it is ephemeral, and has no layer that is kept"
    } else if disk.options().read_only {
        "it is read-only: its header cannot be written"
    } else if files.top.status().lost_writes.is_some() {
        "it has lost writes; see its status"
    } else if files.top.status().enospc_hold.is_some() {
        HOLDS
    } else if header.merge.is_some() {
        "its commit was interrupted; when the machine is off, run `bulkhead layer commit` again"
    } else if !is_at(files.top.file(), path) {
        "it was moved or deleted while the machine runs; move it back"
    } else if disk.is_merging.swap(true, Ordering::AcqRel) {
        "a layer below it is being merged already"
    } else {
        let header = header.clone();
        return Ok((Mark(&disk.is_merging), files, header));
    };
    Err(refused(path, reason))
}

/// The path of the frozen layer below the top.
fn layer_path(disk: &LayeredDisk, header: &Header, file: &RawFile) -> Result<PathBuf, MergeError> {
    let path = base_path(disk.path(), header);
    let found = FileIdentity::of(&file.file().metadata().map_err(host_error(&path, "query it"))?);
    let why = if !is_at(file.file(), &path) {
        "it was moved while the machine runs, or is a link; move it back".to_owned()
    } else if folder(&path).canonicalize().ok() != folder(disk.path()).canonicalize().ok() {
        // It is to be removed, and only layers in its folder are known to stand on it.
        "it is in another folder than the disk, so that no snapshot of the disk has made it; to merge \
         it, stop the machine and make it a layer of its own"
            .to_owned()
    } else if disk.named_base == Some(found) {
        "it is the `base` of the disk in the configuration, and would be gone; to merge it, change \
         `base` to a file below it and restart the machine"
            .to_owned()
    } else {
        return Ok(path);
    };
    Err(refused(&path, why))
}

/// Whether the path leads to the file.
fn is_file(file: &RawFile, path: &Path) -> Result<bool, OpenError> {
    let metadata = file.file().metadata().map_err(host_error(path, "query it"))?;
    Ok(FileIdentity::at(path).is_ok_and(|found| found == FileIdentity::of(&metadata)))
}
