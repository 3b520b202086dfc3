//! An opened file or block device of the host: what is known of it and does not change.
//!
//! Shared by the control thread and all engines of a disk. What changes is in
//! [`crate::disk_state`].

mod direct_io;
mod holder;
mod identity;
mod limits;
mod lock;
mod open;
mod plausible;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::OFlags;

pub(crate) use self::direct_io::DirectIo;
pub use self::identity::FileIdentity;
pub(crate) use self::limits::{HostLimits, MAX_ZEROED_AT_ONCE, is_read_only_device, probe};
pub use self::lock::{ImageHolder, ImageLock, image_holder};
pub(crate) use self::lock::{acquire as lock_image, query as query_lock};
pub use self::open::lock_unchanged;
pub(crate) use self::open::{FileKind, claim, claim_if_free, find, reopen, without_access_times};
pub use self::plausible::{DroppedLimit, Implausible};
use crate::{DiscardLimits, DiskOptions, ImageLocking, OpenError, StoreFacts};

/// See the module's documentation. Dropping it releases the lock on the image.
#[derive(Debug)]
pub(crate) struct HostFile {
    pub(crate) path: PathBuf,
    /// Holds the lock on the image, and a writable block device exclusively.
    pub(crate) file: File,
    pub(crate) kind: FileKind,
    pub(crate) options: DiskOptions,
    pub(crate) limits: HostLimits,
    pub(crate) store: StoreFacts,
}

/// The open file descriptions of one engine.
#[derive(Debug)]
pub(crate) struct EngineFiles {
    /// For reads and writes.
    pub(crate) disk: File,
    /// For `fdatasync`.
    pub(crate) syncs: File,
}

impl EngineFiles {
    /// The descriptors for transfers, for `fdatasync`, and for ranges to discard or zero. The last
    /// is, on a block device, the description that holds it exclusively: the kernel refuses any
    /// other with `EBUSY` while the page cache is dirty.
    pub(crate) fn with_ranges<'a>(&'a self, host: &'a HostFile) -> [BorrowedFd<'a>; 3] {
        let ranges = if host.is_block_device() { &host.file } else { &self.disk };
        [self.disk.as_fd(), self.syncs.as_fd(), ranges.as_fd()]
    }
}

impl HostFile {
    /// Opens the file twice more for one engine: for its I/O and for its `fdatasync`. Linux reports
    /// a write-back error once per open file description: of two engines that shared one, or of
    /// durable writes and flushes, only the first to ask would learn of it.
    ///
    /// The first description holds the locks on the image as well, so that a write in flight keeps
    /// them. For an image that is only read, this file alone denies changes to others.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn open_for_engine(&self) -> Result<EngineFiles, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: self.path.clone(), what, source };
        let open = || {
            reopen(&self.file, open::flags(&self.options))
                .map_err(host_error("open it for an engine"))
        };
        let disk = open::without_access_times(open()?);
        if self.options.lock == ImageLocking::On {
            let is_read = self.options.read_only;
            let locked =
                if is_read { lock::share_reading(&disk) } else { lock::share(&disk, false) };
            locked.map_err(host_error("lock it"))?;
        }
        Ok(EngineFiles { disk, syncs: open()? })
    }

    /// Opens the file again, to be read with these options. It holds the locks of a reader,
    /// which no other process may have taken the opposite of, as this one is locked.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn open_reader(&self, options: &DiskOptions) -> Result<File, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: self.path.clone(), what, source };
        let file = reopen(&self.file, open::flags(options)).map_err(host_error("open it again"))?;
        if options.lock == ImageLocking::On {
            lock::share(&file, options.read_only).map_err(host_error("lock it"))?;
        }
        Ok(file)
    }

    /// Opens the file again, to be written with these options, and locks it so. Only this process
    /// may read it meanwhile. This file [denies changes](Self::deny_changes) again afterwards,
    /// before the other one is closed.
    ///
    /// # Errors
    ///
    /// Another process uses the file, or the host's error. This file is locked as before.
    pub(crate) fn open_writer(&self, options: &DiskOptions) -> Result<File, OpenError> {
        let exclusive = if self.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        open::retry_in_use(|| {
            let file = reopen(&self.file, open::flags(options) | exclusive)
                .map_err(|source| open::open_error(&self.path, options, source))?;
            if self.options.lock == ImageLocking::On {
                lock::take_over(&file, &self.file, &self.path)?;
            }
            Ok(file)
        })
    }

    /// Denies changes to other processes again.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn deny_changes(&self) -> io::Result<()> {
        if self.options.lock == ImageLocking::On { lock::deny_changes(&self.file) } else { Ok(()) }
    }

    /// Name of the disk in the log.
    pub(crate) fn name(&self) -> String {
        match self.options.id.as_str() {
            "" => self.path.display().to_string(),
            id => id.to_owned(),
        }
    }

    /// The unit of the disk's size, in bytes: a write of the last block must not extend the file.
    pub(crate) fn size_unit(&self) -> u32 {
        let block = self.limits.geometry.logical_block;
        self.limits.direct.map_or(block, |direct| direct.offset.max(block))
    }

    pub(crate) fn is_block_device(&self) -> bool {
        self.kind == FileKind::BlockDevice
    }

    /// Discard limits of a device whose whole granules read zero after a discard, so that zeroing
    /// may discard them.
    pub(crate) fn zeroes_by_discarding(&self) -> Option<DiscardLimits> {
        self.limits.geometry.discard.filter(|limits| self.is_block_device() && limits.reads_zero)
    }

    /// Whether submission of a transfer may block: through the page cache of a block device, Linux
    /// (6.18) starts none while a range of it is being zeroed, `IOCB_NOWAIT` or not.
    #[inline]
    pub(crate) fn submission_may_block(&self) -> bool {
        self.is_block_device() && self.limits.direct.is_none()
    }

    /// Whether a write failed with ENOSPC or EDQUOT and no other data is lost. That holds for
    /// direct writes. Through the page cache, file systems reserve space before they accept the
    /// data; if the store below runs out of it during write-back of earlier data, the next
    /// flush reports that too, as no write uses its descriptor. A block device accepts any data
    /// and fails at write-back.
    pub(crate) fn is_own_enospc(&self, error: &io::Error) -> bool {
        is_enospc(error) && (self.limits.direct.is_some() || !self.is_block_device())
    }

    /// Whether a failed `fdatasync` may mean the loss of data acknowledged before. Not if a block
    /// device reports ENOSPC for direct I/O: no page of the disk is dirty, and what the device has
    /// completed it keeps (ADR 16).
    pub(crate) fn is_loss_by_flush(&self, error: &io::Error) -> bool {
        !(is_enospc(error) && self.is_block_device() && self.limits.direct.is_some())
    }

    /// Whether a failed durable write may mean the loss of data acknowledged before. Through the
    /// page cache its `RWF_DSYNC` part reports write-back errors of earlier writes; a direct
    /// write reports its own error only (ADR 13).
    pub(crate) fn is_loss_of_earlier_writes(&self, error: &io::Error) -> bool {
        let too_large = error.raw_os_error() == Some(libc::EFBIG);
        let own_error = self.is_own_enospc(error) || (!self.is_block_device() && too_large);
        self.limits.direct.is_none() && !own_error
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        lock::release(&self.file);
    }
}

/// Whether the file system is full, or the quota exhausted.
pub(crate) fn is_enospc(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
