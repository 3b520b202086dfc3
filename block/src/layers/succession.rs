//! A new top in the place of a frozen layer, in the folder of both.
//!
//! The layer is frozen first, with the name that it is to get. The new top gets that name, and then
//! both exchange their names: at no time is there a file more, and an interruption leaves a frozen
//! layer that [`complete`] recognizes when it is opened as a disk.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Gid, RenameFlags, Uid};
use rustix::io::Errno;

use super::file::{base_path, host_error, read_header, write_header};
use super::header::Header;
use super::identity::BaseKind;
use super::info::header_at;
use super::map_file;
use super::new_file::{NewFile, sync_names};
use super::uuid::Uuid;
use crate::{DiskOptions, OpenError, RawFile};

/// The header of a layer that is frozen and gets another name in its folder.
///
/// # Errors
///
/// The host has no random numbers.
pub(super) fn frozen(layer: &Header, name: &OsStr) -> io::Result<Header> {
    let (frozen, pending_name) = (Some(Uuid::random()?), Some(name.to_owned()));
    // Only a disk retires a merged layer, and the next one has another base.
    Ok(Header { frozen, pending_name, merged: None, ..layer.clone() }.next())
}

/// The header of an empty top over a frozen layer.
///
/// # Errors
///
/// The host has no random numbers.
pub(super) fn successor(frozen: &Header, name: &OsStr) -> io::Result<Header> {
    Ok(Header::new(Uuid::random()?, frozen.size, frozen.identity(), Path::new(name)))
}

/// Writes the file of a new top for the owner of the layer that it succeeds.
///
/// # Errors
///
/// The host's error.
pub(super) fn write(path: &Path, layer: &File, header: &Header) -> Result<NewFile, OpenError> {
    let new = NewFile::write(path, header)?;
    let metadata = layer.metadata().map_err(host_error(path, "query it"))?;
    let permissions = new.file().set_permissions(metadata.permissions());
    permissions.map_err(host_error(path, "copy its permissions"))?;
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    // Without the right to give it away, it keeps the group at least.
    rustix::fs::fchown(new.file(), Some(uid), Some(gid))
        .or_else(|_| rustix::fs::fchown(new.file(), None, Some(gid)))
        .or_else(|errno| if errno == Errno::PERM { Ok(()) } else { Err(errno) })
        .map_err(|errno| host_error(path, "copy its owner")(errno.into()))?;
    Ok(new)
}

/// Puts the new top in the place of a layer that is frozen, durably: it has the layer's path, and
/// the layer the path `frozen`.
///
/// # Errors
///
/// The host's error.
pub(super) fn put_in_place(new: &NewFile, path: &Path, frozen: &Path) -> Result<(), OpenError> {
    new.name(frozen)?;
    exchange(path, frozen)?;
    sync_names(path)
}

/// Exchanges the names of both files.
///
/// # Errors
///
/// The host's error.
pub(super) fn exchange(path: &Path, frozen: &Path) -> Result<(), OpenError> {
    rustix::fs::renameat_with(CWD, path, CWD, frozen, RenameFlags::EXCHANGE).map_err(|errno| {
        host_error(path, "exchange its name with that of its successor")(errno.into())
    })
}

/// Whether both paths name the file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let at = path.symlink_metadata().map(identity);
    file.metadata().map(identity).is_ok_and(|file| at.is_ok_and(|at| at == file))
}

/// Completes a snapshot of the layer at `path` that was interrupted, if one was.
///
/// # Errors
///
/// The host's error, or another file has the name that the layer is to get.
pub(super) fn complete(path: &Path, options: &DiskOptions) -> Result<(), OpenError> {
    // The open that follows tells why it cannot be read.
    let Ok(header) = header_at(path) else { return Ok(()) };
    if header.pending_name.is_none() {
        // It may be the new top, whose disk was written through the old one up to a kill.
        let is_over_layer = header.base.kind == BaseKind::Layer;
        return if is_over_layer {
            settle_frozen(&base_path(path, &header), options)
        } else {
            Ok(())
        };
    }
    let file = RawFile::open_container(path, options)?;
    let header = read_header(file.file(), path)?;
    let Some(name) = &header.pending_name else { return Ok(()) };
    let pending = path.with_file_name(name);
    // It has its name already.
    if is_at(file.file(), &pending) {
        return Ok(());
    }
    let settled = map_file::settle(file.file(), path, &header);
    match settled.and_then(|()| finish(&file, path, &header, &pending)) {
        Ok(()) => settle(&file, path, header),
        // Both are the same disk: no layer stands on the frozen one yet.
        Err(error) => undo(&file, path, header, &pending).map_err(|_| error),
    }
}

/// Puts a new top in the place of a frozen layer that is to have the path `pending`.
fn finish(file: &RawFile, path: &Path, header: &Header, pending: &Path) -> Result<(), OpenError> {
    if is_successor(pending, header) {
        exchange(path, pending)?;
        return sync_names(path);
    }
    if pending.symlink_metadata().is_ok() {
        let why = format!("{} is another file; move that elsewhere", pending.display());
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    let name = pending.file_name().unwrap_or_default();
    let successor = successor(header, name).map_err(host_error(path, "make an identity"))?;
    put_in_place(&write(path, file.file(), &successor)?, path, pending)
}

/// Thaws a frozen layer whose snapshot cannot be completed.
fn undo(file: &RawFile, path: &Path, header: Header, pending: &Path) -> Result<(), OpenError> {
    if !is_at(file.file(), path) {
        let why = "a snapshot of it was interrupted, and its names are unclear".to_owned();
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    if is_successor(pending, &header) {
        std::fs::remove_file(pending).map_err(host_error(pending, "remove it"))?;
    }
    sync_names(path)?;
    let thawed = Header { frozen: None, pending_name: None, ..header }.next();
    write_header(file.file(), &thawed).map_err(host_error(path, "thaw it"))?;
    tracing::warn!(path = %path.display(), "a snapshot that was interrupted was undone");
    Ok(())
}

/// Gives the map of a frozen layer what its disk had completed when the program was killed, between
/// the two steps of a snapshot: it was frozen and had its name, and was still written. Nothing is
/// above it but its successor.
///
/// # Errors
///
/// It is in use, or the host's error.
pub(super) fn settle_frozen(path: &Path, options: &DiskOptions) -> Result<(), OpenError> {
    let is_unsettled = |header: &Header| {
        let file = File::open(path).map_err(host_error(path, "open it"))?;
        map_file::is_unsettled(&file, path, header)
    };
    let pending = header_at(path).ok().filter(|header| header.pending_name.is_some());
    if !pending.as_ref().map_or(Ok(false), is_unsettled)? {
        return Ok(());
    }
    let file = RawFile::open_container(path, options)?;
    let header = read_header(file.file(), path)?;
    map_file::settle(file.file(), path, &header)?;
    settle(&file, path, header)
}

/// Notes in a frozen layer that it has its name.
///
/// # Errors
///
/// The host's error.
pub(super) fn settle(file: &RawFile, path: &Path, frozen: Header) -> Result<(), OpenError> {
    let settled = Header { pending_name: None, ..frozen }.next();
    write_header(file.file(), &settled).map_err(host_error(path, "write its header"))
}

/// Whether the file is an empty top over the frozen layer, which no other layer stands on.
fn is_successor(path: &Path, frozen: &Header) -> bool {
    let header = header_at(path);
    header.is_ok_and(|header| header.frozen.is_none() && header.base == frozen.identity())
}
