//! `layer commit`: a layer is merged into its base, and is empty afterwards, or removed.
//!
//! The header of the layer says that a merge is in progress before the base changes, and the
//! identity of the base changes before its content, so that every other layer over it is refused.
//! The layer itself stays usable: it answers for each block that is written to the base.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::file::{base_path, host_error};
use super::super::header::Header;
use super::super::map::LayerMap;
use super::super::map_file::read_map;
use super::super::new_file::{remove_leftover, sync_names};
use super::super::unit::BLOCK;
use super::super::uuid::Uuid;
use super::chain::{LockedChain, LockedLevel};
use super::copy::{Copier, CopyProgress, OnProgress};
use super::leftover::clear_leftover;
use super::merge_base::MergeBase;
use super::neighbours::{neighbours, standing_on};
use super::top::ChangedTop;
use super::walk::require_unchanged_below;
use crate::OpenError;

/// Bytes of a piece, after which a merge can end.
const PIECE: usize = 4 << 20;

/// How a layer is merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Also if other layers stand on the base, which cannot be used afterwards.
    pub force: bool,
    /// The layer is removed.
    pub remove: bool,
}

/// A layer that was merged into its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedLayer {
    /// The base.
    pub base: PathBuf,
    /// Bytes of the disk that the layer answered for.
    pub merged: u64,
    /// The layers that stand on the base too, and cannot be used now.
    pub broken: Vec<PathBuf>,
}

/// Merges the layer at `path` into its base. A frozen one keeps its identity: layers over it read
/// the same.
///
/// # Errors
///
/// The layer is in use, or cannot be used; it is to be removed although others stand on it; its
/// base is in use, read only, too small, or has changed; other layers stand on the base, without
/// `force`; or the host's error.
pub fn commit_layer(
    path: &Path,
    options: CommitOptions,
    on_progress: OnProgress<'_>,
) -> Result<CommittedLayer, OpenError> {
    let mut top = ChangedTop::open(path)?;
    if options.remove {
        require_unneeded(&top)?;
    }
    let base_path = base_path(&top.path, &top.header);
    let mut base = MergeBase::open(&top, &base_path)?;
    require_unchanged_below(&top.path, &top.header)?;
    base.require_room(&top)?;
    clear_leftover(&top.path, &top.file, &mut top.header)?;
    remove_leftover(&top.path)?;
    let broken = neighbours(&top.path, &top.header.base, &base_path);
    let map = read_map(top.file.file(), &top.path, &top.header)?;
    let merged = map.count() * BLOCK;
    let is_needed = merged > 0 || base.size() < top.header.size || top.header.merge.is_some();
    if is_needed {
        if !options.force && !broken.is_empty() {
            return Err(others(&base_path, &broken));
        }
        base.lengthen(&top)?;
        let id = begin(&mut top, &base)?;
        base.begin(&mut top, id)?;
        let base_map = base.map()?;
        let report = |bytes| {
            on_progress(CopyProgress { bytes, total: merged });
            Ok(())
        };
        copy_all(&top, map, &base, base_map.as_ref(), report)
            .and_then(|()| base.finish())
            .map_err(|error| interrupted(&top.path, &error))?;
    }
    if options.remove {
        let removed = std::fs::remove_file(&top.path);
        removed.map_err(host_error(&top.path, "remove it"))?;
        sync_names(&top.path)?;
    } else if is_needed {
        let identity = base.identity()?;
        top.replace_with_empty(Header { base: identity, ..top.header.clone() })?;
    }
    let broken = if is_needed { broken } else { Vec::new() };
    Ok(CommittedLayer { base: base_path, merged, broken })
}

/// Refuses a frozen layer that others stand on, which could not be used without it.
fn require_unneeded(top: &ChangedTop) -> Result<(), OpenError> {
    if top.header.frozen.is_none() {
        return Ok(());
    }
    match standing_on(&top.path, &top.header.identity(), &[]).as_slice() {
        [] => Ok(()),
        [above, ..] => Err(top.unsuitable(format!(
            "{} stands on it; run the command without --remove, which leaves it empty",
            above.display()
        ))),
    }
}

/// Writes to the header of the layer that a merge is in progress. Returns the identity that a base
/// that is a layer gets.
///
/// # Errors
///
/// The host's error.
pub(in super::super) fn begin(top: &mut ChangedTop, base: &MergeBase) -> Result<Uuid, OpenError> {
    let header = top.header.clone();
    let header = match (header.merge, base.layer()) {
        // All was merged, and the base is a whole layer, on which others may stand since.
        (Some(id), Some(found)) if found.frozen == Some(id) && !found.is_receiving => {
            Header { base: found.identity(), ..header }
        }
        (Some(id), _) => return Ok(id),
        (None, _) => header,
    };
    let id = Uuid::random().map_err(host_error(&top.path, "make an identity of its base"))?;
    top.write(Header { merge: Some(id), ..header })?;
    Ok(id)
}

/// Copies all that the layer answers for to the base, and makes it durable. `map` is that of the
/// layer, `base_map` that of a base that is a layer. `after_piece` gets the bytes of each piece,
/// and may end the copy.
///
/// # Errors
///
/// The host's error, or that of `after_piece`.
pub(in super::super) fn copy_all<E: From<OpenError>>(
    top: &ChangedTop,
    map: LayerMap,
    base: &MergeBase,
    base_map: Option<&LayerMap>,
    mut after_piece: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let (data_at, size) = (top.header.data_at(), top.header.size);
    let mut pieces = Vec::new();
    let mut block = 0;
    while block < size / BLOCK {
        let (is_set, end) = map.run(block, size / BLOCK);
        pieces.extend(is_set.then_some((block * BLOCK, end * BLOCK)));
        block = end;
    }
    let (path, file) = (top.path.clone(), Arc::clone(&top.file));
    let from = LockedChain(vec![LockedLevel { path, file, data_at, size, map: Some(map) }]);
    let mut target = base.target(base_map);
    let mut ignore = |_| {};
    let mut copier = Copier::new(0, &mut ignore);
    for (start, end) in pieces {
        for at in (start..end).step_by(PIECE) {
            let end = end.min(at + PIECE as u64);
            copier.copy(&from, at, end, &mut target)?;
            after_piece(end - at)?;
        }
    }
    Ok(target.settle()?)
}

/// The error of a merge that has begun.
fn interrupted(path: &Path, error: &OpenError) -> OpenError {
    let why = format!(
        "its merge is interrupted: {error}; the disk reads as before; when that is mended, run the \
         same command again"
    );
    OpenError::Unsuitable { path: path.into(), why }
}

/// The error of a base on which other layers stand.
pub(in super::super) fn others(base: &Path, others: &[PathBuf]) -> OpenError {
    const NAMED: usize = 4;
    let mut names: Vec<_> =
        others.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    if others.len() > NAMED {
        names.push(format!("{} more", others.len() - NAMED));
    }
    let names = names.join(", ");
    let why = format!(
        "other layers stand on it and could not be used afterwards: {names}; keep what they read \
         with `bulkhead layer flatten`, or give them up with --force"
    );
    OpenError::Unsuitable { path: base.into(), why }
}
