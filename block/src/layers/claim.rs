//! A base that a layer is about to stand on: locked against writers. Control thread only.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::file::{host_error, read_header, write_header};
use super::header::Header;
use super::identity::BaseIdentity;
use super::map_file;
use super::merge::require_whole;
use super::open::sync;
use super::succession::{is_at, settle_frozen};
use super::uuid::Uuid;
use crate::{CacheMode, DiskOptions, FormatVerdict, ImageFormat, OpenError, ProbedFormat, RawFile};

/// A base that is locked against writers.
pub(super) enum ClaimedBase {
    /// A raw image or a device, or a layer that is frozen.
    Unchanging { identity: BaseIdentity, _file: RawFile },
    /// A layer that is to be frozen, with the header that it gets. No other process uses it.
    Layer { file: RawFile, frozen: Header },
}

impl ClaimedBase {
    /// Locks the base. One that is a layer is to be frozen.
    pub(super) fn open(base: &Path) -> Result<Self, OpenError> {
        let options = DiskOptions::new(CacheMode::WriteBack);
        settle_frozen(base, &options)?;
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
        // A program that was killed may have frozen it in the page cache only.
        sync(file.file(), base)?;
        let header = read_header(file.file(), base)?;
        require_whole(&header, base)?;
        require_own_name(&header, &file, base)?;
        if header.frozen.is_some() {
            return Ok(unchanging(header.identity(), file));
        }
        drop(file);
        let file = RawFile::open_container(base, &options)?;
        let header = read_header(file.file(), base)?;
        if header.frozen.is_some() {
            return Ok(unchanging(header.identity(), file));
        }
        map_file::settle(file.file(), base, &header)?;
        let frozen = Uuid::random().map_err(host_error(base, "make its identity"))?;
        Ok(Self::Layer { file, frozen: Header { frozen: Some(frozen), ..header }.next() })
    }

    /// The identity that it has once it is frozen.
    pub(super) fn identity(&self) -> BaseIdentity {
        match self {
            Self::Unchanging { identity, .. } => identity.clone(),
            Self::Layer { frozen, .. } => frozen.identity(),
        }
    }

    /// Freezes a layer that is not frozen.
    pub(super) fn freeze(&self, base: &Path) -> Result<(), OpenError> {
        let Self::Layer { file, frozen } = self else { return Ok(()) };
        write_header(file.file(), frozen).map_err(host_error(base, "freeze it"))
    }
}

/// Refuses a layer whose snapshot was interrupted: it, or its successor, is about to get another
/// name.
fn require_own_name(header: &Header, file: &RawFile, path: &Path) -> Result<(), OpenError> {
    let is_pending = |name: &OsString| !is_at(file.file(), &path.with_file_name(name));
    let is_own_base = path.file_name() == Some(header.base_path.as_os_str());
    if !header.pending_name.as_ref().is_some_and(is_pending) && !is_own_base {
        return Ok(());
    }
    let why = "a snapshot of its machine was interrupted; start that machine first".to_owned();
    Err(OpenError::Unsuitable { path: path.into(), why })
}

/// The path of the base as the layer is to have it: relative paths start at the layer's folder.
pub(super) fn path_from(layer: &Path, base: &Path) -> PathBuf {
    let folder = layer.parent().filter(|folder| !folder.as_os_str().is_empty());
    match (folder, base.is_absolute()) {
        (None, _) | (_, true) => base.to_owned(),
        (Some(folder), false) => match base.strip_prefix(folder) {
            Ok(below) => below.to_owned(),
            Err(_) => std::path::absolute(base).unwrap_or_else(|_| base.to_owned()),
        },
    }
}
