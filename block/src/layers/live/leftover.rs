//! A layer that was merged, and that the disk does not need any more.

use std::sync::PoisonError;

use super::super::disk::LayeredDisk;
use super::super::file::write_header;
use super::super::header::Header;
use super::super::offline::{ChangedTop, MergeBase, Retired, retire, retire_merged};
use crate::{OpenError, RawFile};

/// Removes a layer that was merged, or keeps it for others. Returns why it is still there.
pub(super) fn retire_layer(
    disk: &LayeredDisk,
    top: &RawFile,
    layer: &mut ChangedTop,
    base: &MergeBase,
) -> Option<String> {
    match base.identity().and_then(|base| retire(layer, disk.path(), &base)) {
        Ok(retired) => {
            note(disk, top);
            (retired == Retired::Kept).then(|| "other layers stand on it".to_owned())
        }
        Err(error) => Some(format!("{error}; the next start or commit removes it")),
    }
}

/// Retires a layer that an earlier commit of the disk has left.
///
/// # Errors
///
/// The host's error.
pub(super) fn clear_leftover_of(disk: &LayeredDisk) -> Result<(), OpenError> {
    let header = disk.header.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if header.merged.is_none() {
        return Ok(());
    }
    retire_merged(disk.path(), &header)?;
    note(disk, &disk.files().top);
    Ok(())
}

/// Notes in the top that no merged layer is left.
fn note(disk: &LayeredDisk, top: &RawFile) {
    let mut header = disk.header.lock().unwrap_or_else(PoisonError::into_inner);
    let done = Header { merged: None, ..header.clone() }.next();
    let written = write_header(top.file(), &done);
    if written.is_ok() {
        *header = done;
    }
    drop(header);
    if let Err(error) = written {
        let path = disk.path().display();
        tracing::warn!(%error, %path, "a commit is complete, but the layer does not say so");
    }
}
