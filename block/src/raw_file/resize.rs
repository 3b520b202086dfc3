//! Growing a disk while its guest runs. Control thread only.
//!
//! The host's file grows first and the limit of admission last, so that no admitted request exceeds
//! the file. A disk never shrinks: the guest would write beyond its end.

use std::io::{self, Seek, SeekFrom};

use super::format_check::renew_mark;
use crate::ResizeError;
use crate::disk_state::OpenDisk;
use crate::host_file::{FileKind, HostFile};

/// See [`crate::Backend::resize`].
pub(super) fn resize(disk: &OpenDisk, size: Option<u64>) -> Result<u64, ResizeError> {
    let capacity = disk.state.capacity();
    let check = |size| check(&disk.file, capacity, size);
    if let Some(size) = size {
        check(size)?;
        grow(&disk.file, capacity, size)?;
    }
    let found = size_of(&disk.file).map_err(host_error("query its size"))?;
    check(found)?;
    // The host may have changed the size.
    renew_mark(&disk.file, capacity, found);
    disk.state.grow_to(found);
    Ok(found)
}

fn check(file: &HostFile, capacity: u64, size: u64) -> Result<(), ResizeError> {
    if size < capacity {
        return Err(ResizeError::Shrink { from: capacity, to: size });
    }
    let unit = file.size_unit();
    if !size.is_multiple_of(unit.into()) {
        return Err(ResizeError::Unaligned { size, unit });
    }
    Ok(())
}

fn grow(file: &HostFile, capacity: u64, size: u64) -> Result<(), ResizeError> {
    if file.kind != FileKind::Regular {
        return Err(ResizeError::NotAFile);
    }
    if file.options.read_only {
        return Err(ResizeError::ReadOnly);
    }
    // The file may be larger than the guest knows, and its end must not be cut off.
    let found = size_of(file).map_err(host_error("query its size"))?;
    if size < found {
        return Err(ResizeError::Shrink { from: found, to: size });
    }
    file.file.set_len(size).map_err(host_error("extend the file"))?;
    renew_mark(file, capacity, size);
    file.file.sync_all().map_err(host_error("make its new size durable"))
}

fn host_error(what: &'static str) -> impl FnOnce(io::Error) -> ResizeError {
    move |source| ResizeError::Host { what, source }
}

/// The size of the file or device on the host, in bytes.
fn size_of(file: &HostFile) -> io::Result<u64> {
    (&file.file).seek(SeekFrom::End(0))
}
