//! New files that have their name when they are complete. Control thread only.
//!
//! A file has no name while it is written, so that a killed program leaves none. Linux replaces a
//! name only by another name: a file that replaces one has a second, hidden name for a moment.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};

use super::file::{host_error, write_header};
use super::header::Header;
use crate::OpenError;

/// The end of the hidden name of a file that is about to replace another one.
pub(super) const HIDDEN_END: &str = ".bulkhead-new";

/// A file without a name, which needs no removal if the program is killed.
pub(super) struct NewFile(File);

impl NewFile {
    /// A file that is to be at `path`.
    pub(super) fn at(path: &Path, length: u64) -> Result<Self, OpenError> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(folder(path))
            .map_err(host_error(path, "make a file in its folder"))?;
        file.set_len(length).map_err(host_error(path, "extend it"))?;
        Ok(Self(file))
    }

    /// Writes the file of a new layer that is to be at `path`.
    pub(super) fn write(path: &Path, header: &Header) -> Result<Self, OpenError> {
        let file = Self::at(path, header.data_at() + header.size)?;
        write_header(&file.0, header).map_err(host_error(path, "write its header"))?;
        Ok(file)
    }

    /// Its file.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Gives it a name.
    pub(super) fn name(&self, path: &Path) -> Result<(), OpenError> {
        let from = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
            .map_err(|errno| host_error(path, "give it its name")(errno.into()))
    }

    /// Gives it its name, which survives a power cut.
    pub(super) fn link(self, path: &Path) -> Result<(), OpenError> {
        self.name(path)?;
        sync_names(path)
    }

    /// Puts it in place of the file at `path`, which has `metadata` and whose lock the caller
    /// holds: with its owner and its mode. `path` is no link.
    pub(super) fn replace(self, path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
        self.look_like(metadata).map_err(host_error(path, "keep its owner and its mode"))?;
        self.0.sync_all().map_err(host_error(path, "make the file in its place durable"))?;
        remove_leftover(path)?;
        let hidden = hidden_name(path);
        self.name(&hidden)?;
        std::fs::rename(&hidden, path).map_err(host_error(path, "replace it"))?;
        sync_names(path)
    }

    fn look_like(&self, metadata: &Metadata) -> io::Result<()> {
        let own = self.0.metadata()?;
        if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(&self.0, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        self.0.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))
    }
}

/// Removes what a program left that was killed while it replaced the file at `path`. The caller
/// holds the lock of that file, so that no other program replaces it now.
pub(super) fn remove_leftover(path: &Path) -> Result<(), OpenError> {
    let hidden = hidden_name(path);
    match std::fs::remove_file(&hidden) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(host_error(&hidden, "remove it")(error)),
    }
}

/// Makes the names in the folder of a file durable.
pub(super) fn sync_names(path: &Path) -> Result<(), OpenError> {
    let synced = File::open(folder(path)).and_then(|folder| folder.sync_all());
    synced.map_err(host_error(path, "make its name durable"))
}

/// The name of a file that is about to replace that at `path`.
fn hidden_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(HIDDEN_END);
    folder(path).join(name)
}

pub(super) fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
