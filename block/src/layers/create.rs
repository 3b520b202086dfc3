//! Makes a new layer over a base. Control thread only.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::file::{host_error, read_header, write_header};
use super::header::{BLOCK, Header};
use super::identity::BaseIdentity;
use super::uuid::Uuid;
use crate::{CacheMode, DiskOptions, FormatVerdict, ImageFormat, OpenError, ProbedFormat, RawFile};

/// A layer that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedLayer {
    /// Its identity.
    pub uuid: Uuid,
    /// Size of its disk in bytes.
    pub size: u64,
}

/// Makes a layer at `path` over `base`, of `size` bytes or as large as the base. A base that is a
/// layer is frozen: it is never written again. The layer is made under another name beside `path`
/// and has its name when it is complete.
///
/// # Errors
///
/// `path` exists; the base is in use by a writer, has another format, or cannot be read; or the
/// host's error.
pub fn create_layer(
    path: &Path,
    base: &Path,
    size: Option<u64>,
) -> Result<CreatedLayer, OpenError> {
    let unsuitable = |why: String| OpenError::Unsuitable { path: path.into(), why };
    if path.symlink_metadata().is_ok() {
        return Err(unsuitable("it exists already; a layer is never made over a file".to_owned()));
    }
    let identity = identify(base)?;
    let base_size = identity.size;
    let size = size.unwrap_or_else(|| base_size.next_multiple_of(BLOCK));
    if size == 0 || !size.is_multiple_of(BLOCK) {
        return Err(unsuitable(format!("{size} bytes is not a multiple of {BLOCK} bytes")));
    }
    let uuid = Uuid::random().map_err(host_error(path, "make its identity"))?;
    let header = Header::new(uuid, size, identity, &path_from(path, base));
    if size > header.size_max() {
        return Err(unsuitable(format!("{size} bytes is too large for a disk")));
    }
    write_new(path, &header)?;
    Ok(CreatedLayer { uuid, size })
}

/// The path of the base as the layer is to have it: relative paths start at the layer's folder.
fn path_from(layer: &Path, base: &Path) -> PathBuf {
    let folder = layer.parent().filter(|folder| !folder.as_os_str().is_empty());
    match (folder, base.is_absolute()) {
        (None, _) | (_, true) => base.to_owned(),
        (Some(folder), false) => match base.strip_prefix(folder) {
            Ok(below) => below.to_owned(),
            Err(_) => std::path::absolute(base).unwrap_or_else(|_| base.to_owned()),
        },
    }
}

/// The identity of a base that is free of writers. Freezes one that is a layer.
fn identify(base: &Path) -> Result<BaseIdentity, OpenError> {
    let options = DiskOptions::new(CacheMode::WriteBack);
    let read_only = options.clone().read_only();
    let file = RawFile::open_container(base, &read_only)?;
    let probed = ProbedFormat::of(file.file()).map_err(host_error(base, "read it"))?;
    match probed.verdict(base, &options) {
        FormatVerdict::Foreign { format: ImageFormat::Layer, .. } => {}
        FormatVerdict::Foreign { format, remedy } => {
            return Err(OpenError::Foreign { path: base.into(), format, remedy });
        }
        FormatVerdict::Raw | FormatVerdict::Suspect { .. } => {
            return BaseIdentity::of_raw(file.file()).map_err(host_error(base, "read it"));
        }
    }
    let header = read_header(file.file(), base)?;
    if header.is_frozen {
        return Ok(BaseIdentity::of_layer(header.uuid, header.size));
    }
    drop(file);
    // The lock of a writer: nobody uses the layer.
    let file = RawFile::open_container(base, &options)?;
    let header = read_header(file.file(), base)?;
    let frozen = Header { is_frozen: true, ..header }.next();
    write_header(file.file(), &frozen).map_err(host_error(base, "freeze it"))?;
    Ok(BaseIdentity::of_layer(frozen.uuid, frozen.size))
}

/// Writes the file of a new layer. A file without a name needs no removal if the program is
/// killed.
fn write_new(path: &Path, header: &Header) -> Result<(), OpenError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file = File::options()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(folder)
        .map_err(host_error(path, "make a file in its folder"))?;
    let write = || {
        file.set_len(header.data_at() + header.size)?;
        write_header(&file, header)?;
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, path, follow)?;
        // The name has to survive a power cut as well.
        File::open(folder)?.sync_all()
    };
    write().map_err(|error: io::Error| host_error(path, "write it")(error))
}
