//! A disk in a raw image file or on a block device of the host: the control plane.
//!
//! Runs on the control thread, except for [`Backend::engine`], which each worker calls for itself.

mod format_check;
mod resize;
mod survey;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

pub use self::format_check::{FormatVerdict, ProbedFormat, free_name};
pub use self::survey::{StoreSpace, Survey};
use crate::allocation::{QUERY_TIME, collect_within};
use crate::clock::Clock;
use crate::disk_state::OpenDisk;
use crate::host_file::{FileKind, HostFile, claim, find, probe};
use crate::{
    Backend, BackingSpace, BaseFacts, ByteOffset, CacheMode, Crossing, DiskOptions, DiskStatus,
    EngineSetup, Extent, Extents, FileIdentity, Geometry, IoEngine, LateEnospc, OpenError,
    ResizeError, SpaceProbe, StoreFacts, WrongLink, engine, wrong_link,
};

/// A raw image file or a host block device.
#[derive(Debug)]
pub struct RawFile {
    disk: Arc<OpenDisk>,
    space: SpaceProbe,
}

impl RawFile {
    /// Opens a disk and keeps other writers off it: with an open-file-description lock, as other
    /// monitors use, and a writable block device with `O_EXCL` as well, which excludes mounts.
    ///
    /// # Errors
    ///
    /// The host's error; another process holds the file; the file has another format than raw; or
    /// it cannot serve as a disk (neither a regular file nor a block device, empty, or of an
    /// unsuitable size).
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        Self::open_checked(path, options, format_check::require_raw, StoreFacts::of)
    }

    /// Opens the file of another format for the backend of that format, which serves the guest.
    ///
    /// # Errors
    ///
    /// As [`RawFile::open`].
    pub(crate) fn open_container(path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        Self::open_checked(path, options, |_, _, _| Ok(false), StoreFacts::of)
    }

    /// Opens what a layer stands on: another layer, or a raw image or device. The caller checks
    /// which.
    ///
    /// # Errors
    ///
    /// As [`RawFile::open`].
    pub(crate) fn open_base(path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        Self::open_checked(path, options, |_, _, _| Ok(false), StoreFacts::of_base)
    }

    /// Opens a file that is to be at `path`, for the backend of its format.
    ///
    /// # Errors
    ///
    /// As [`RawFile::open`].
    pub(crate) fn open_unnamed(
        file: &File,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let (found, kind) = find(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))?;
        let file = claim(&found, kind, path, options)?;
        Self::open_claimed(file, kind, path, options, |_, _, _| Ok(false), StoreFacts::of)
    }

    /// The file at `path`, which this is, to be read with these options. This one may be closed
    /// afterwards, if no process may write the file any more.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn reader(&self, path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let host = &self.disk.file;
        // The layer above is in the same folder, so that these are its problems, too.
        let store = StoreFacts { flush_problems: Vec::new(), ..host.store.clone() };
        self.opened_again(host.open_reader(options)?, path, options, store)
    }

    /// The same file again, as it is now: it may have grown. This one may be closed afterwards,
    /// as that of [`RawFile::reader`].
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn reopened(&self) -> Result<Self, OpenError> {
        let host = &self.disk.file;
        let (options, store) = (&host.options, host.store.clone());
        self.opened_again(host.open_reader(options)?, &host.path, options, store)
    }

    /// The file, which this one reads, to be written by this process: see
    /// [`HostFile::open_writer`].
    ///
    /// # Errors
    ///
    /// Another process uses the file, its mode forbids writes, or the host's error.
    pub(crate) fn writer(&self, options: &DiskOptions) -> Result<Self, OpenError> {
        let host = &self.disk.file;
        let file = host.open_writer(options)?;
        let locks = file.try_clone();
        let opened = self.opened_again(file, &host.path, options, host.store.clone());
        if opened.is_err()
            && let Err(error) = self.deny_changes()
        {
            tracing::error!(%error, "the lock on a file below a layer is lost");
        }
        drop(locks);
        opened
    }

    /// Denies changes to other processes again, before a [writer](Self::writer) is closed.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn deny_changes(&self) -> io::Result<()> {
        self.disk.file.deny_changes()
    }

    fn opened_again(
        &self,
        file: File,
        path: &Path,
        options: &DiskOptions,
        store: StoreFacts,
    ) -> Result<Self, OpenError> {
        let limits = probe(&file, path, self.disk.file.kind, options, &store.copied)?;
        let what = "find its backing store";
        let space = SpaceProbe::of(&file).map_err(|source| OpenError::Host {
            path: path.into(),
            what,
            source,
        })?;
        let kind = self.disk.file.kind;
        let (path, options) = (path.into(), options.clone());
        let file = HostFile { path, file, kind, options, limits, store };
        Ok(Self { disk: Arc::new(OpenDisk::new(file, Clock::Host)), space })
    }

    /// Opens a disk whose content `is_raw` checks; it is marked as raw if the check says so.
    fn open_checked(
        path: &Path,
        options: &DiskOptions,
        is_raw: impl FnOnce(&File, &Path, &DiskOptions) -> Result<bool, OpenError>,
        facts: impl FnOnce(&File, &DiskOptions) -> io::Result<StoreFacts>,
    ) -> Result<Self, OpenError> {
        let (file, kind) = claim_named(path, options)?;
        Self::open_claimed(file, kind, path, options, is_raw, facts)
    }

    fn open_claimed(
        file: File,
        kind: FileKind,
        path: &Path,
        options: &DiskOptions,
        is_raw: impl FnOnce(&File, &Path, &DiskOptions) -> Result<bool, OpenError>,
        facts: impl FnOnce(&File, &DiskOptions) -> io::Result<StoreFacts>,
    ) -> Result<Self, OpenError> {
        require_own_link(path, &file)?;
        let is_raw = is_raw(&file, path, options)?;
        let host_error = |what| move |source| OpenError::Host { path: path.into(), what, source };
        let store = facts(&file, options).map_err(host_error("query the storage below it"))?;
        refuse_late_enospc(path, &store, options)?;
        let limits = probe(&file, path, kind, options, &store.copied)?;
        let space = SpaceProbe::of(&file).map_err(host_error("find its backing store"))?;
        if options.soft_limit.is_some() && space.is_volume() {
            let what = "measure the space of its pool, which soft_limit needs";
            space.measure(&file).map_err(host_error(what))?;
        }
        let (path, options) = (path.into(), options.clone());
        let file = HostFile { path, file, kind, options, limits, store };
        if is_raw {
            format_check::mark_raw(&file);
        }
        Ok(Self { disk: Arc::new(OpenDisk::new(file, Clock::Host)), space })
    }
}

impl RawFile {
    /// The file that holds the lock.
    pub(crate) fn file(&self) -> &File {
        &self.disk.file.file
    }

    /// Takes the state of the soft limit over from a file on the same store.
    pub(crate) fn adopt_soft_limit(&self, from: &Self) {
        let limits = (&self.disk.state.soft_limit, &from.disk.state.soft_limit);
        if let (Some(limit), Some(from)) = limits {
            limit.adopt(from);
        }
    }

    /// The facts of a file that was opened as a base.
    pub(crate) fn base_facts(&self) -> BaseFacts {
        BaseFacts { path: self.disk.file.path.clone(), store: self.disk.file.store.clone() }
    }
}

/// Locks the file at `path`. Another program may replace it by another file, as `layer reset` does,
/// while the lock of the old one is held or taken: then the new one is locked.
fn claim_named(path: &Path, options: &DiskOptions) -> Result<(File, FileKind), OpenError> {
    loop {
        let (found, kind) = find(path)?;
        let file = claim(&found, kind, path, options)?;
        let host_error = |source| OpenError::Host { path: path.into(), what: "query it", source };
        let claimed = FileIdentity::of(&file.metadata().map_err(host_error)?);
        if FileIdentity::at(path).map_err(host_error)? == claimed {
            return Ok((file, kind));
        }
    }
}

/// Refuses a device that a link names otherwise: it may be the disk of another guest.
fn require_own_link(path: &Path, file: &File) -> Result<(), OpenError> {
    wrong_link(path, file).map_or(Ok(()), |WrongLink { link, named, found }| {
        Err(OpenError::WrongLink { path: path.into(), link, named, found })
    })
}

/// Refuses `on_enospc = "hold"` where it would hold no write.
fn refuse_late_enospc(
    path: &Path,
    store: &StoreFacts,
    options: &DiskOptions,
) -> Result<(), OpenError> {
    let Some(LateEnospc { is_certain: true, storey }) = &store.late_enospc else { return Ok(()) };
    let (cache, direct) = (options.cache, options.cache.direct_equivalent());
    let why = format!(
        "on_enospc = \"hold\" holds no write in cache mode {cache}: Linux accepts writes before \
         there is space for them ({storey}); use cache = \"{direct}\""
    );
    Err(OpenError::Unsuitable { path: path.into(), why })
}

impl Backend for RawFile {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn cache_mode(&self) -> CacheMode {
        self.disk.file.options.cache
    }

    fn read_only(&self) -> bool {
        self.disk.file.options.read_only
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        engine::make(&self.disk, setup)
    }

    fn status(&self) -> DiskStatus {
        self.disk.status()
    }

    fn sync(&self) -> io::Result<()> {
        let file = &self.disk.file.file;
        if self.disk.file.options.read_only {
            return Ok(());
        }
        self.disk.sync_with(|| rustix::fs::fdatasync(file).map_err(io::Error::from))
    }

    fn stop_holding(&self) {
        self.disk.state.enospc.stop();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let extents = Extents::new(&self.disk.file.file, from.0, self.disk.state.capacity());
        collect_within(extents.take(limit), QUERY_TIME)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.space.measure_quickly(&self.disk.file.file)
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        let Some(limit) = &self.disk.state.soft_limit else { return Ok(None) };
        let space = self.space.measure(&self.disk.file.file)?;
        Ok(space.and_then(|space| limit.update(space)))
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        resize::resize(&self.disk, size)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
