//! A disk in a raw image file or on a block device of the host.
//!
//! Control plane: opening, locking, making engines. Runs on the control thread, but for
//! [`Backend::engine`], which each worker calls for itself.

mod holder;
mod limits;
pub(crate) mod lock;
mod resize;
mod survey;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

pub use self::lock::Lock;
pub use self::survey::Survey;
use crate::allocation::{LONGEST_LOOK, no_longer_than};
use crate::clock::Clock;
use crate::engine_choice::{self, EngineSelection};
use crate::failures::FailureLog;
use crate::host_file::{HostFile, Kind, LiveGeometry, flags_of, open_again};
use crate::range_lock::RangeLock;
use crate::soft_limit::SoftLimit;
use crate::space::SpaceWatch;
use crate::sync_latch::SyncLatch;
use crate::trim::{Account, Activity};
use crate::zvol::{Volume, WatchedVolume};
use crate::{
    Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DetectZeroes, DiskStatus, EngineKind,
    EngineSetup, Extent, Extents, Geometry, IoEngine, OnEnospc, OpenError, ResizeError,
};

/// How a disk is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its name in the log; its path if empty.
    pub id: String,
    /// Its cache mode.
    pub mode: CacheMode,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The guest's block, 512 or 4096 bytes. By default that of a block device, and 512 for a file:
    /// what direct I/O wants of the host never changes it.
    pub block_size: Option<u32>,
    /// Which engine serves it.
    pub engine: EngineKind,
    /// What becomes of writes that the host has no space for.
    pub on_enospc: OnEnospc,
    /// Of the space of what stores it, so many percent used are to be told of.
    pub soft_limit: Option<u8>,
    /// Whether guests may give space back. If not, they are not offered it.
    pub discard: bool,
    /// What becomes of writes of nothing but zeroes.
    pub detect_zeroes: DetectZeroes,
}

impl DiskOptions {
    /// A writable disk of the given cache mode, and the defaults for everything else.
    #[must_use]
    pub fn new(mode: CacheMode) -> Self {
        Self {
            id: String::new(),
            mode,
            read_only: false,
            block_size: None,
            engine: EngineKind::Auto,
            on_enospc: OnEnospc::Report,
            soft_limit: None,
            discard: true,
            detect_zeroes: DetectZeroes::Off,
        }
    }

    /// The same, not to be written.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }
}

/// A raw image file or a host block device.
#[derive(Debug)]
pub struct RawFile {
    host: Arc<HostFile>,
    /// If it is a ZFS volume whose store is to be looked at.
    volume: Option<WatchedVolume>,
}

impl RawFile {
    /// Opens a disk and keeps others from writing to it: with an open-file-description lock, as
    /// other virtual machine monitors use, and on a writable block device with `O_EXCL`, which also
    /// excludes mounts.
    ///
    /// # Errors
    ///
    /// The host refuses the file or a question about it; another process uses it; or it cannot be
    /// a disk (neither a regular file nor a block device, empty, or of a broken size).
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let DiskOptions { mode, read_only, .. } = *options;
        let (found, kind) = find(path)?;
        let file = claim_patiently(|| claim(&found, kind, path, options))?;
        let limits = limits::probe(&file, path, kind, options)?;
        let volume = match options.soft_limit {
            Some(_) => watched_volume(&file, path)?,
            None => None,
        };
        let id = match options.id.as_str() {
            "" => path.display().to_string(),
            id => id.to_owned(),
        };
        Ok(Self {
            host: Arc::new(HostFile {
                path: path.into(),
                file,
                kind,
                mode,
                read_only,
                geometry: LiveGeometry::new(limits.geometry),
                engine: EngineSelection::new(options.engine),
                direct: limits.direct,
                range_unit: limits.range_unit,
                range_lock: RangeLock::new(
                    limits.shared_block.unwrap_or(1),
                    limits.shared_block.is_some(),
                ),
                latch: SyncLatch::default(),
                space: SpaceWatch::new(id.clone(), path.into(), options.on_enospc),
                clock: Clock::Host,
                soft_limit: options.soft_limit.map(SoftLimit::new),
                trimmed: Account::default(),
                activity: Activity::default(),
                detect_zeroes: options.detect_zeroes,
                zeroing: AtomicUsize::new(0),
                failures: FailureLog::new(id),
                discard_refusal_noted: AtomicBool::new(false),
            }),
            volume,
        })
    }
}

/// The ZFS volume that is opened, looked at for the first time; nothing if it is none.
fn watched_volume(file: &File, path: &Path) -> Result<Option<WatchedVolume>, OpenError> {
    let refused = |source| {
        let what = "ask for the space of its pool, which soft_limit needs";
        OpenError::Host { path: path.into(), what, source }
    };
    let Some(volume) = Volume::of(file).map_err(refused)? else { return Ok(None) };
    let volume = WatchedVolume::new(volume);
    volume.look().map_err(refused)?;
    Ok(Some(volume))
}

/// Finds the file that holds a disk, without opening it: opening a FIFO or a tape has effects.
fn find(path: &Path) -> Result<(OwnedFd, Kind), OpenError> {
    let host_error = |what| {
        move |source: Errno| OpenError::Host { path: path.into(), what, source: source.into() }
    };
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(host_error("find it"))?;
    let stat = rustix::fs::fstat(&found).map_err(host_error("query it"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((found, Kind::Regular)),
        FileType::BlockDevice => Ok((found, Kind::BlockDevice)),
        _ => {
            let why = "a disk is a regular file or a block device; this is neither".into();
            Err(OpenError::Unsuitable { path: path.into(), why })
        }
    }
}

/// Repeats `claim` for as long as a disk may look used by a process that is gone: the kernel closes the
/// files of a killed process only when it has taken its io_urings apart.
fn claim_patiently(mut claim: impl FnMut() -> Result<File, OpenError>) -> Result<File, OpenError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match claim() {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Opens the file that was found and keeps others off it.
fn claim(
    found: &OwnedFd,
    kind: Kind,
    path: &Path,
    options: &DiskOptions,
) -> Result<File, OpenError> {
    let DiskOptions { mode, read_only, .. } = *options;
    let exclusive = match kind {
        Kind::BlockDevice if !read_only => OFlags::EXCL,
        _ => OFlags::empty(),
    };
    let file = open_again(found, flags_of(mode, read_only) | exclusive)
        .map_err(|source| open_error(path, mode, source))?;
    lock::take(&file, path, read_only)?;
    Ok(file)
}

fn open_error(path: &Path, mode: CacheMode, source: io::Error) -> OpenError {
    let path = path.into();
    match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse { path, pid: None },
        Some(libc::EINVAL) if mode.is_direct() => OpenError::Unsuitable {
            path,
            why: format!("its file system has no direct I/O, which cache mode {mode} needs"),
        },
        _ => OpenError::Host { path, what: "open it", source },
    }
}

impl Backend for RawFile {
    fn geometry(&self) -> Geometry {
        self.host.geometry.get()
    }

    fn cache_mode(&self) -> CacheMode {
        self.host.mode
    }

    fn read_only(&self) -> bool {
        self.host.read_only
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        engine_choice::make(&self.host, setup)
    }

    fn status(&self) -> DiskStatus {
        self.host.status()
    }

    fn sync(&self) -> io::Result<()> {
        self.host.sync_with(|| rustix::fs::fdatasync(&self.host.file).map_err(io::Error::from))
    }

    fn stop_holding(&self) {
        self.host.space.stop();
    }

    fn allocation(&self, from: ByteOffset, most: usize) -> io::Result<Vec<Extent>> {
        let capacity = self.host.geometry.get().capacity;
        no_longer_than(Extents::new(&self.host.file, from.0, capacity).take(most), LONGEST_LOOK)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        match &self.volume {
            Some(volume) => Ok(volume.last()),
            None => BackingSpace::of(&self.host.file),
        }
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        let Some(limit) = &self.host.soft_limit else { return Ok(None) };
        let space = match &self.volume {
            Some(volume) => Some(volume.look()?),
            None => self.backing_space()?,
        };
        Ok(space.and_then(|space| limit.look(space)))
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        resize::resize(&self.host, size)
    }
}
