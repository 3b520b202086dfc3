//! Makes a new layer over a base. Control thread only.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};

use super::file::{host_error, read_header, write_header};
use super::header::Header;
use super::identity::BaseIdentity;
use super::info::probe_base;
use super::unit::BLOCK;
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
    let smallest = probe_base(base)?;
    let claimed = ClaimedBase::open(base)?;
    let identity = claimed.identity();
    let size = size.unwrap_or(smallest);
    if !size.is_multiple_of(BLOCK) {
        return Err(unsuitable(format!("{size} bytes is not a multiple of {BLOCK} bytes")));
    }
    if size < smallest {
        let why = format!("{size} bytes is less than the base has, and would cut its end off");
        return Err(unsuitable(why));
    }
    let uuid = Uuid::random().map_err(host_error(path, "make its identity"))?;
    let header = Header::new(uuid, size, identity, &path_from(path, base));
    if size > header.size_max() {
        let most = header.size_max();
        return Err(unsuitable(format!("{size} bytes is more than a layer can have, {most}")));
    }
    let new = NewFile::write(path, &header)?;
    // The last step that can fail for a reason of the user has passed.
    claimed.freeze(base)?;
    new.link(path)?;
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

/// A base that is locked against writers.
enum ClaimedBase {
    /// A raw image or a device, or a layer that is frozen.
    Unchanging { identity: BaseIdentity, _file: RawFile },
    /// A layer that is to be frozen, with the header that it gets. No other process uses it.
    Layer { file: RawFile, frozen: Header },
}

impl ClaimedBase {
    fn open(base: &Path) -> Result<Self, OpenError> {
        let options = DiskOptions::new(CacheMode::WriteBack);
        let file = RawFile::open_container(base, &options.clone().read_only())?;
        let probed = ProbedFormat::of(file.file()).map_err(host_error(base, "read it"))?;
        let unchanging = |identity, file| Self::Unchanging { identity, _file: file };
        match probed.verdict(base, &options) {
            FormatVerdict::Foreign { format: ImageFormat::Layer, .. } => {}
            FormatVerdict::Foreign { format, remedy } => {
                return Err(OpenError::Foreign { path: base.into(), format, remedy });
            }
            FormatVerdict::Raw | FormatVerdict::Suspect { .. } => {
                let identity = BaseIdentity::of_raw(file.file());
                return Ok(unchanging(identity.map_err(host_error(base, "read it"))?, file));
            }
        }
        let header = read_header(file.file(), base)?;
        if header.frozen.is_some() {
            return Ok(unchanging(header.identity(), file));
        }
        drop(file);
        let file = RawFile::open_container(base, &options)?;
        let header = read_header(file.file(), base)?;
        let frozen = Uuid::random().map_err(host_error(base, "make its identity"))?;
        Ok(Self::Layer { file, frozen: Header { frozen: Some(frozen), ..header }.next() })
    }

    fn identity(&self) -> BaseIdentity {
        match self {
            Self::Unchanging { identity, .. } => identity.clone(),
            Self::Layer { frozen, .. } => frozen.identity(),
        }
    }

    /// Freezes a layer that is not frozen.
    fn freeze(&self, base: &Path) -> Result<(), OpenError> {
        let Self::Layer { file, frozen } = self else { return Ok(()) };
        write_header(file.file(), frozen).map_err(host_error(base, "freeze it"))
    }
}

/// A file without a name, which needs no removal if the program is killed.
struct NewFile(File);

impl NewFile {
    /// Writes the file of a new layer that is to be at `path`.
    fn write(path: &Path, header: &Header) -> Result<Self, OpenError> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(folder(path))
            .map_err(host_error(path, "make a file in its folder"))?;
        file.set_len(header.data_at() + header.size).map_err(host_error(path, "extend it"))?;
        write_header(&file, header).map_err(host_error(path, "write its header"))?;
        Ok(Self(file))
    }

    /// Gives it its name, which survives a power cut.
    fn link(self, path: &Path) -> Result<(), OpenError> {
        let from = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
            .map_err(|errno| host_error(path, "give it its name")(errno.into()))?;
        let synced = File::open(folder(path)).and_then(|folder| folder.sync_all());
        synced.map_err(host_error(path, "make its name durable"))
    }
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
