//! A disk that grows while its guest runs. Control thread only.
//!
//! The host's file comes first, the limit that engines check requests against last, so that no request
//! passes the check and finds no file. A disk never shrinks: the guest would write where nothing is.

use std::io::{self, Seek, SeekFrom};

use crate::host_file::{HostFile, Kind};
use crate::{Geometry, ResizeError};

/// See [`crate::Backend::resize`].
pub(super) fn resize(host: &HostFile, size: Option<u64>) -> Result<u64, ResizeError> {
    let known = host.geometry.get();
    if let Some(size) = size {
        check(host, &known, size)?;
        grow(host, size)?;
    }
    let found = found_size(host).map_err(refused("find its size"))?;
    check(host, &known, found)?;
    host.geometry.grow_to(found);
    Ok(found)
}

fn check(host: &HostFile, known: &Geometry, size: u64) -> Result<(), ResizeError> {
    let Geometry { capacity, .. } = *known;
    if size < capacity {
        return Err(ResizeError::Shrink { from: capacity, to: size });
    }
    let unit = host.size_unit();
    if !size.is_multiple_of(unit.into()) {
        return Err(ResizeError::Unaligned { size, unit });
    }
    Ok(())
}

fn grow(host: &HostFile, size: u64) -> Result<(), ResizeError> {
    if host.kind != Kind::Regular {
        return Err(ResizeError::NotAFile);
    }
    if host.read_only {
        return Err(ResizeError::ReadOnly);
    }
    // Somebody may have made the file larger than the guest knows: that must not be cut off.
    let found = found_size(host).map_err(refused("find its size"))?;
    if size < found {
        return Err(ResizeError::Shrink { from: found, to: size });
    }
    host.file.set_len(size).map_err(refused("make the file longer"))?;
    host.file.sync_all().map_err(refused("make its new size durable"))
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> ResizeError {
    move |source| ResizeError::Host { what, source }
}

/// The size of the file or device as the host has it now, in bytes.
fn found_size(host: &HostFile) -> io::Result<u64> {
    (&host.file).seek(SeekFrom::End(0))
}
