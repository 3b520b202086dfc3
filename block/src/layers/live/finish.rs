//! The end of a merge in a disk that is in use: its top is put on the base of the merged layer.
//!
//! The header of the top says so first. Then the disk is held for a moment, in which its engines
//! drop the level of the layer.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::disk::{DiskFiles, LayeredDisk};
use super::super::file::{host_error, write_header};
use super::super::header::Header;
use super::super::levels::{Level, LevelMap};
use super::super::map::LayerMap;
use super::super::offline::{ChangedTop, MergeBase};
use super::super::seats::{Successor, Unready};
use super::error::{HOLDS, MergeError, refused};
use crate::{Backend, OpenError, RawFile};

/// The levels of the merged layer and its base.
const MERGED: std::ops::Range<usize> = 1..3;

/// The levels were replaced.
pub(super) struct Switched {
    /// From the hold of the disk to its release, without the flush.
    pub(super) held: Duration,
    /// The flush meanwhile.
    pub(super) flush: Duration,
}

/// Puts the top of the disk, which has these files, on the base of the merged layer. `map` is that
/// of a base that is a layer.
///
/// # Errors
///
/// Requests did not complete in time, or the host's error. The disk is as before.
pub(super) fn finish(
    disk: &LayeredDisk,
    files: &Arc<DiskFiles>,
    (layer, base): (&ChangedTop, &MergeBase),
    map: Option<LayerMap>,
    limit: Duration,
) -> Result<Switched, MergeError> {
    let Some(old) = files.below.get(1) else {
        return Err(refused(disk.path(), "its base is not there"));
    };
    if files.top.status().enospc_hold.is_some() {
        return Err(refused(disk.path(), HOLDS));
    }
    let reader = Arc::new(old.reopened()?);
    let (data_at, size) = (base.layer().map_or(0, Header::data_at), base.size());
    let level = Level { data_at, size, map: map.map_or(LevelMap::Raw, LevelMap::Layer) };
    // A flush in the moment has little to do then.
    sync_within(files, disk, limit)?;
    let mut header = disk.header.lock().unwrap_or_else(PoisonError::into_inner);
    let before = header.clone();
    // Both layers are in one folder, where relative paths start.
    let on_base = Header {
        base: base.identity()?,
        base_path: layer.header.base_path.clone(),
        merged: layer.path.file_name().map(ToOwned::to_owned).zip(layer.header.frozen),
        ..before.clone()
    };
    write(disk, files, &mut header, on_base)?;
    let switched = Switch { disk, files, is_done: false }.run(reader, level, limit);
    let Err(error) = switched else { return switched };
    // The layer is still a level of the disk.
    let Header { base, base_path, merged, .. } = before;
    let undone = Header { base, base_path, merged, ..header.clone() };
    let undone = write(disk, files, &mut header, undone);
    drop(header);
    if let Err(error) = undone {
        tracing::error!(%error, "a layer is merged, but its disk uses it until the next start");
    }
    Err(error)
}

/// Writes the header of the top.
fn write(
    disk: &LayeredDisk,
    files: &DiskFiles,
    header: &mut MutexGuard<'_, Header>,
    next: Header,
) -> Result<(), OpenError> {
    let next = next.next();
    write_header(files.top.file(), &next).map_err(host_error(disk.path(), "write its header"))?;
    **header = next;
    Ok(())
}

/// Engines that are to drop a level. Dropping it lets them go on as before, unless it is done.
struct Switch<'s> {
    disk: &'s LayeredDisk,
    files: &'s Arc<DiskFiles>,
    is_done: bool,
}

impl Switch<'_> {
    fn run(
        mut self,
        reader: Arc<RawFile>,
        level: Level,
        limit: Duration,
    ) -> Result<Switched, MergeError> {
        let (seats, levels) = (&self.disk.seats, &self.files.levels);
        let files = vec![Arc::clone(&reader)];
        seats.prepare(levels, Successor { levels: MERGED, files });
        self.wait_until(Instant::now() + limit)?;
        let began = Instant::now();
        seats.hold(levels);
        self.wait_until(began + limit)?;
        let flush_began = Instant::now();
        sync_within(self.files, self.disk, limit.saturating_sub(began.elapsed()))?;
        let flush = flush_began.elapsed();
        let levels = Arc::new(levels.merged(level));
        let rest = self.files.below.iter().skip(MERGED.len()).map(Arc::clone);
        self.disk.set_files(DiskFiles {
            levels: Arc::clone(&levels),
            top: Arc::clone(&self.files.top),
            below: std::iter::once(reader).chain(rest).collect(),
            before: self.files.before.clone(),
        });
        self.is_done = true;
        seats.switch(&levels);
        Ok(Switched { held: began.elapsed().saturating_sub(flush), flush })
    }

    fn wait_until(&self, deadline: Instant) -> Result<(), MergeError> {
        self.disk.seats.wait_until(deadline).map_err(|unready| match unready {
            Unready::Engine(error) => error.into(),
            Unready::Busy(queues) => {
                let why = format!(
                    "requests of {queues} queues did not complete in time, after all was merged; run \
                     the commit again when the guest discards less, or see the stall in its status"
                );
                refused(self.disk.path(), why)
            }
        })
    }
}

impl Drop for Switch<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.disk.seats.abandon(&self.files.levels);
        }
    }
}

/// Flushes the disk. The host may keep a flush for any time, and requests may be held meanwhile.
fn sync_within(
    files: &Arc<DiskFiles>,
    disk: &LayeredDisk,
    limit: Duration,
) -> Result<(), MergeError> {
    let path: PathBuf = disk.path().to_owned();
    match files.sync_within(limit).map_err(host_error(&path, "flush it"))? {
        true => Ok(()),
        false => {
            let why = "the host does not complete a flush; see the stall in its status, and run the \
                       commit again";
            Err(refused(&path, why))
        }
    }
}
