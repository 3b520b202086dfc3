//! A layer that was merged for a disk that does not need it any more: it is removed, or kept for
//! other layers over it. May block.

use std::io::ErrorKind;
use std::path::Path;

use super::super::file::{host_error, read_header, write_header};
use super::super::header::Header;
use super::super::identity::BaseIdentity;
use super::super::new_file::sync_names;
use super::super::succession::is_at;
use super::chain::write_options;
use super::neighbours::{neighbours, require_searchable};
use super::top::ChangedTop;
use super::walk::leads_to;
use crate::{FileIdentity, OpenError, RawFile};

/// The end of a layer that was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Retired {
    /// It is gone.
    Removed,
    /// Other layers stand on it.
    Kept,
}

/// Removes a layer that was merged into a base that has this identity now, unless layers other than
/// `top` stand on it: these read the same as before.
///
/// # Errors
///
/// The host's error, also if it hides whether others stand on it. The layer is still there then.
pub(in super::super) fn retire(
    layer: &mut ChangedTop,
    top: &Path,
    base: &BaseIdentity,
) -> Result<Retired, OpenError> {
    if !is_at(layer.file.file(), &layer.path) {
        return Ok(Retired::Removed);
    }
    require_searchable(top, &layer.path)?;
    if !neighbours(top, &layer.header.identity(), &layer.path).is_empty() {
        layer.write(Header { merge: None, base: base.clone(), ..layer.header.clone() })?;
        return Ok(Retired::Kept);
    }
    let removed = std::fs::remove_file(&layer.path);
    removed.map_err(host_error(&layer.path, "remove it"))?;
    sync_names(&layer.path)?;
    Ok(Retired::Removed)
}

/// Retires the layer that a commit has merged for the disk at `path`, if an interruption left it.
/// The disk is locked, and stands on its base as it is now.
///
/// # Errors
///
/// The host's error at the disk itself. A layer that cannot be removed stays, and is logged.
pub(in super::super) fn clear_leftover(
    path: &Path,
    file: &RawFile,
    header: &mut Header,
) -> Result<(), OpenError> {
    let Some((name, _)) = &header.merged else { return Ok(()) };
    if let Err(error) = retire_merged(path, header) {
        let leftover = path.with_file_name(name);
        let leftover = leftover.display();
        tracing::warn!(%error, %leftover, "a layer was merged, but cannot be removed");
        return Ok(());
    }
    let done = Header { merged: None, ..header.clone() }.next();
    write_header(file.file(), &done).map_err(host_error(path, "write its header"))?;
    *header = done;
    Ok(())
}

/// Retires the merged layer that the header of the disk at `top` names. Nothing is done if there is
/// none, if another file has its name meanwhile, or if the disk still stands on it: a header that
/// is old, copied or made by a stranger deletes nothing else.
///
/// # Errors
///
/// It is in use, or the host's error.
pub(in super::super) fn retire_merged(top: &Path, header: &Header) -> Result<(), OpenError> {
    let Some((name, frozen)) = &header.merged else { return Ok(()) };
    let path = top.with_file_name(name);
    let is_file = match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        metadata => metadata.map_err(host_error(&path, "find it"))?.is_file(),
    };
    if !is_file || FileIdentity::at(&path).is_ok_and(|layer| leads_to(top, layer)) {
        return Ok(());
    }
    let file = RawFile::open_container(&path, &write_options())?;
    let Ok(found) = read_header(file.file(), &path) else { return Ok(()) };
    let is_merged = found.merge.is_some() && found.frozen == Some(*frozen);
    // The disk may stand on a copy of it.
    if !is_merged || !is_at(file.file(), &path) || header.base == found.identity() {
        return Ok(());
    }
    let mut layer = ChangedTop { path, file: file.into(), header: found };
    retire(&mut layer, top, &header.base).map(drop)
}

#[cfg(test)]
mod tests;
