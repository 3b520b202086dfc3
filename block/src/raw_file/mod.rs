//! A disk in a raw image file or on a block device of the host.
//!
//! Control plane: opening, locking, making engines. Runs on the control thread, but for
//! [`Backend::engine`], which each worker calls for itself.

mod limits;
mod lock;
mod resize;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::host_file::{HostFile, Kind, LiveGeometry, flags_of, open_again};
use crate::sync_latch::SyncLatch;
use crate::uring::UringEngine;
use crate::{Backend, CacheMode, Engine, EngineSetup, Geometry, IoEngine, OpenError, ResizeError};

/// A raw image file or a host block device.
#[derive(Debug)]
pub struct RawFile {
    host: Arc<HostFile>,
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
    pub fn open(path: &Path, mode: CacheMode, read_only: bool) -> Result<Self, OpenError> {
        let host_error = |what| {
            move |source: Errno| OpenError::Host { path: path.into(), what, source: source.into() }
        };
        // Found before it is opened: opening a FIFO or a tape has effects.
        let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(host_error("find it"))?;
        let stat = rustix::fs::fstat(&found).map_err(host_error("query it"))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::BlockDevice => Kind::BlockDevice,
            _ => {
                let why = "a disk is a regular file or a block device; this is neither".into();
                return Err(OpenError::Unsuitable { path: path.into(), why });
            }
        };
        let exclusive = match kind {
            Kind::BlockDevice if !read_only => OFlags::EXCL,
            _ => OFlags::empty(),
        };
        let file = open_again(&found, flags_of(mode, read_only) | exclusive)
            .map_err(|source| open_error(path, mode, source))?;
        lock::take(&file, path, read_only)?;
        let limits = limits::probe(&file, path, kind, mode, read_only)?;
        Ok(Self {
            host: Arc::new(HostFile {
                path: path.into(),
                file,
                kind,
                mode,
                read_only,
                geometry: LiveGeometry::new(limits.geometry),
                direct: limits.direct,
                latch: SyncLatch::default(),
                discard_refusal_noted: AtomicBool::new(false),
            }),
        })
    }
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
        Ok(Box::new(UringEngine::new(Arc::clone(&self.host), setup)?))
    }

    fn engine_choice(&self) -> Engine {
        Engine { name: "io_uring", reason: "the only engine; a host that refuses it is an error" }
    }

    fn sync(&self) -> io::Result<()> {
        self.host.sync_with(|| rustix::fs::fdatasync(&self.host.file).map_err(io::Error::from))
    }

    fn has_lost_writes(&self) -> bool {
        self.host.latch.check().is_err()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        resize::resize(&self.host, size)
    }
}
