//! A snapshot of disks that are in use: their tops are frozen at one moment, and each gets a new
//! top.
//!
//! Each layer is marked as frozen, and an empty top [put in its place](super::succession), durably:
//! the disk reads the same through both. Then all disks are held, their requests complete, what
//! they have written is flushed, and the disks are released over their new tops. Up to then they
//! write to the old ones. If one disk cannot be switched, all keep their tops.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::disk::{DiskFiles, LayeredDisk};
use super::file::{host_error, write_header};
use super::header::Header;
use super::levels::Levels;
use super::map::LayerMap;
use super::new_file::{NewFile, sync_names};
use super::open::{LEVELS_MAX, options_below, top};
use super::seats::{Successor, Unready};
use super::succession;
use super::unflushed::UnflushedMap;
use crate::{Backend, OpenError, RawFile};

/// A snapshot that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeSnapshot {
    /// The frozen layers, by disk.
    pub frozen: Vec<PathBuf>,
    /// From the hold of the first disk to the release of the last one, without the flush.
    pub held: Duration,
    /// The flush of what the disks had written when they were held.
    pub flush: Duration,
}

/// Why no disk has a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk cannot have one, or not now.
    #[error("{path}: {why}")]
    Refused {
        /// The top of the disk.
        path: PathBuf,
        /// The reason, and what to do.
        why: String,
    },
    /// The host's error.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Freezes the tops of the disks at one moment. Each frozen layer gets the file name given with its
/// disk, in its folder, and the disk a new top at the path of the old one. Requests are held for
/// that moment; `limit` is the longest time for those in flight to complete, and with them the
/// flush. Blocks, as long as the host hangs; the guest's requests are held for `limit` at most.
///
/// # Errors
///
/// A disk cannot have a snapshot: it is read-only, has files enough, its top was moved, the name is
/// in use, its requests do not complete in time; or the host's error. All disks are as before.
pub fn snapshot(
    disks: &[(&LayeredDisk, OsString)],
    limit: Duration,
) -> Result<MadeSnapshot, SnapshotError> {
    let mut members: Vec<Member<'_>> = Vec::new();
    for (disk, name) in disks {
        let member = Member::prepare(disk, name)?;
        if members.iter().any(|other| other.frozen_path == member.frozen_path) {
            let why = format!("{} would be two layers", member.frozen_path.display());
            return Err(SnapshotError::Refused { path: member.path(), why });
        }
        members.push(member);
    }
    freeze(&mut members)?;
    let made = succeed(&mut members, limit).inspect_err(|_| {
        members.iter_mut().for_each(Member::release);
        members.iter_mut().for_each(Member::thaw);
    })?;
    members.into_iter().for_each(Member::settle);
    Ok(made)
}

/// Switches the disks to their new tops at one moment.
fn succeed(members: &mut [Member<'_>], limit: Duration) -> Result<MadeSnapshot, SnapshotError> {
    let deadline = Instant::now() + limit;
    members.iter_mut().for_each(Member::make_ready);
    members.iter().try_for_each(|member| member.wait_until(deadline))?;
    // So that there is little to flush in the moment.
    flush(members, Instant::now() + limit)?;
    let began = Instant::now();
    members.iter().for_each(Member::hold);
    let deadline = began + limit;
    members.iter().try_for_each(|member| member.wait_until(deadline))?;
    let flush_began = Instant::now();
    flush(members, deadline)?;
    let flush = flush_began.elapsed();
    members.iter_mut().for_each(Member::switch);
    let held = began.elapsed().saturating_sub(flush);
    let frozen = members.iter().map(|member| member.frozen_path.clone()).collect();
    Ok(MadeSnapshot { frozen, held, flush })
}

/// Flushes the disks side by side.
fn flush(members: &[Member<'_>], deadline: Instant) -> Result<(), SnapshotError> {
    let (sender, flushed) = mpsc::channel();
    for (index, member) in members.iter().enumerate() {
        let (sender, files) = (sender.clone(), Arc::clone(&member.files));
        // Not waited for: the host may keep a flush for any time.
        let flush = move || _ = sender.send((index, files.sync()));
        thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(flush)
            .map_err(|source| host_error(member.disk.path(), "start a thread")(source))?;
    }
    for _ in members {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((index, result)) = flushed.recv_timeout(left) else {
            let why = "the host does not complete a flush; see the stall in its status".to_owned();
            let path = members.first().map_or_else(PathBuf::new, Member::path);
            return Err(SnapshotError::Refused { path, why });
        };
        let path = members.get(index).map_or_else(PathBuf::new, Member::path);
        result.map_err(host_error(&path, "flush it"))?;
    }
    Ok(())
}

/// Freezes the layers and puts new tops in their places, side by side, or undoes that for all.
fn freeze(members: &mut [Member<'_>]) -> Result<(), SnapshotError> {
    let results: Vec<Result<(), OpenError>> = thread::scope(|scope| {
        let start = |member| {
            let freeze = move || Member::freeze(member);
            thread::Builder::new().spawn_scoped(scope, freeze).map_err(|_| member)
        };
        let threads: Vec<_> = members.iter().map(start).collect();
        let ended = threads.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(panicked())),
            // The host is out of threads.
            Err(member) => member.freeze(),
        });
        ended.collect()
    });
    let failed = results.into_iter().find_map(Result::err);
    failed.map_or(Ok(()), |error| {
        members.iter_mut().for_each(Member::thaw);
        Err(error.into())
    })
}

fn panicked() -> OpenError {
    let why = "the thread that freezes a disk panicked".to_owned();
    OpenError::Unsuitable { path: PathBuf::new(), why }
}

/// The reason why a disk cannot have a snapshot now.
fn reason_against(disk: &LayeredDisk, files: &DiskFiles, header: &Header) -> Option<String> {
    let (path, status) = (disk.path(), files.top.status());
    let reason = if files.levels.top.budget.is_some() {
        "the disk over it is ephemeral, and has no layer that is kept"
    } else if disk.options().read_only {
        "it is read-only, and has nothing to freeze"
    } else if files.below.len() + 2 > LEVELS_MAX {
        return Some(format!(
            "a disk has at most {LEVELS_MAX} files; merge some with `bulkhead ctl VM commit`"
        ));
    } else if status.enospc_hold.is_some() {
        "it has requests that wait for space; make space on the host first"
    } else if status.lost_writes.is_some() {
        "it has lost writes; see its status"
    } else if header.merge.is_some() {
        "its commit was interrupted; run `bulkhead layer commit` again"
    } else if disk.is_merging.load(Ordering::Acquire) {
        "a layer below it is being merged; wait for the end of the commit, or stop it"
    } else if !succession::is_at(files.top.file(), path) {
        "it was moved or deleted while the machine runs; move it back"
    } else {
        return None;
    };
    Some(reason.to_owned())
}

/// The reason why a frozen layer cannot have this path.
fn reason_against_name(path: &Path) -> Option<String> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
        Ok(_) => Some(format!("{} exists already; use another name", path.display())),
    }
}

/// A disk of a snapshot. Dropping it releases the disk.
struct Member<'d> {
    disk: &'d LayeredDisk,
    /// Of the old top, as its file has it.
    header: MutexGuard<'d, Header>,
    files: Arc<DiskFiles>,
    /// Of the old top, once it is frozen.
    frozen: Header,
    frozen_path: PathBuf,
    new: NewFile,
    new_header: Header,
    top: Arc<RawFile>,
    unflushed: Option<UnflushedMap>,
    reader: Arc<RawFile>,
    /// The engines get ready for the new top.
    is_pending: bool,
}

impl<'d> Member<'d> {
    /// Checks the disk and makes its new top, without a name.
    fn prepare(disk: &'d LayeredDisk, name: &OsStr) -> Result<Self, SnapshotError> {
        let path = disk.path();
        let refused =
            |why: &str| Err(SnapshotError::Refused { path: path.into(), why: why.to_owned() });
        let header = match disk.header.try_lock() {
            Ok(header) => header,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return refused("it is being resized, or has another snapshot made; try again");
            }
        };
        let files = disk.files();
        if let Some(why) = reason_against(disk, &files, &header) {
            return refused(&why);
        }
        let frozen_path = path.with_file_name(name);
        if let Some(why) = reason_against_name(&frozen_path) {
            return refused(&why);
        }
        // The first change of a folder may wait for more than the second.
        sync_names(path)?;
        let identity = host_error(path, "make an identity");
        let frozen = succession::frozen(&header, name).map_err(&identity)?;
        let new_header = succession::successor(&frozen, name).map_err(&identity)?;
        let new = succession::write(path, files.top.file(), &new_header)?;
        let top = Arc::new(RawFile::open_unnamed(new.file(), path, disk.options())?);
        let unflushed = UnflushedMap::of(&top, path, &new_header, disk.options())?;
        let below = options_below(&files.top.geometry(), disk.options());
        let reader = Arc::new(files.top.reader(&frozen_path, &below)?);
        let is_pending = false;
        Ok(Self {
            disk,
            header,
            files,
            frozen,
            frozen_path,
            new,
            new_header,
            top,
            unflushed,
            reader,
            is_pending,
        })
    }

    fn path(&self) -> PathBuf {
        self.disk.path().to_owned()
    }

    fn make_ready(&mut self) {
        let files = vec![Arc::clone(&self.top), Arc::clone(&self.reader)];
        self.is_pending = true;
        self.disk.seats.prepare(&self.files.levels, Successor { levels: 0..1, files });
    }

    fn hold(&self) {
        self.disk.seats.hold(&self.files.levels);
    }

    fn wait_until(&self, deadline: Instant) -> Result<(), SnapshotError> {
        self.disk.seats.wait_until(deadline).map_err(|unready| match unready {
            Unready::Engine(error) => error.into(),
            Unready::Busy(queues) => {
                let why = format!(
                    "requests of {queues} queues did not complete in time; try again when the \
                     guest discards less, or see the stall in its status"
                );
                SnapshotError::Refused { path: self.path(), why }
            }
        })
    }

    /// Ends the hold over the old top.
    fn release(&mut self) {
        if std::mem::take(&mut self.is_pending) {
            self.disk.seats.abandon(&self.files.levels);
        }
    }

    fn freeze(&self) -> Result<(), OpenError> {
        let path = self.disk.path();
        write_header(self.files.top.file(), &self.frozen).map_err(host_error(path, "freeze it"))?;
        succession::put_in_place(&self.new, path, &self.frozen_path)
    }

    /// Undoes [`Self::freeze`]. If the host refuses that too, the layer stays frozen in its file,
    /// and the next start completes the snapshot of this disk.
    fn thaw(&mut self) {
        let (path, frozen) = (self.disk.path(), &self.frozen_path);
        let log = |error: OpenError| {
            let frozen = frozen.display();
            tracing::error!(%error, %frozen, "a snapshot cannot be undone; the next start completes it");
        };
        if let Err(error) = self.take_back_names() {
            // It must stay frozen: after a power cut its successor may have its name.
            *self.header = self.frozen.clone();
            return log(error);
        }
        // In the slot of the frozen header, so that the other slot is always that of a disk that
        // can be written.
        *self.header = Header { frozen: None, pending_name: None, ..self.frozen.clone() };
        let written = write_header(self.files.top.file(), &self.header);
        if let Err(error) = written.map_err(host_error(path, "thaw it")) {
            log(error);
        }
    }

    /// Gives the old top its name again, durably, and the new one none.
    fn take_back_names(&self) -> Result<(), OpenError> {
        let (path, frozen) = (self.disk.path(), &self.frozen_path);
        if succession::is_at(self.new.file(), path) {
            succession::exchange(path, frozen)?;
        }
        if succession::is_at(self.new.file(), frozen) {
            std::fs::remove_file(frozen).map_err(host_error(frozen, "remove it"))?;
        }
        sync_names(path)
    }

    /// Puts the new top on the disk and releases it.
    fn switch(&mut self) {
        let map = LayerMap::new(self.new_header.map_pages());
        let mut top = top(&self.top, &self.new_header, map, self.disk.options());
        top.unflushed = self.unflushed.take();
        let levels: Arc<Levels> = Arc::new(self.files.levels.succeeded_by(top));
        self.top.adopt_soft_limit(&self.files.top);
        let below = std::iter::once(&self.reader).chain(&self.files.below).map(Arc::clone);
        self.disk.set_files(DiskFiles {
            levels: Arc::clone(&levels),
            top: Arc::clone(&self.top),
            below: below.collect(),
            before: self.files.before.with(&self.files.top),
        });
        *self.header = self.new_header.clone();
        self.is_pending = false;
        self.disk.seats.switch(&levels);
    }

    /// Notes that the snapshot is complete.
    fn settle(mut self) {
        let frozen = std::mem::replace(&mut self.frozen, self.new_header.clone());
        if let Err(error) = succession::settle(&self.files.top, &self.frozen_path, frozen) {
            // It says only that the layer may lack its name, which it has.
            tracing::warn!(%error, "a snapshot is complete, but its layer does not say so");
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.release();
    }
}
