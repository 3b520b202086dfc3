//! An open file or block device of the host, and what engines have to know of it.
//!
//! Shared by the control thread and all engines of one disk; nothing here changes after opening but
//! the latch and the capacity.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::clock::Clock;
use crate::engine_choice::EngineSelection;
use crate::failures::FailureLog;
use crate::range_lock::RangeLock;
use crate::raw_file::lock;
use crate::soft_limit::SoftLimit;
use crate::space::SpaceWatch;
use crate::steps::{Ask, Call, is_want_of_space};
use crate::sync_latch::SyncLatch;
use crate::trim::{Account, Activity};
use crate::{
    ByteOffset, ByteRange, CacheMode, DetectZeroes, DiscardLimits, DiskStatus, Durability,
    FlushAction, Geometry, OpenError, Operation,
};

/// What kind of file holds the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    BlockDevice,
}

/// What direct I/O asks of a transfer. Both are powers of two, in bytes, at most a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlignment {
    /// Of each segment's address.
    pub(crate) memory: u32,
    /// Of the disk offset and of each segment's length.
    pub(crate) offset: u32,
}

/// A geometry whose capacity may grow while engines use it.
#[derive(Debug)]
pub(crate) struct LiveGeometry {
    opened: Geometry,
    capacity: AtomicU64,
}

impl LiveGeometry {
    pub(crate) fn new(opened: Geometry) -> Self {
        Self { opened, capacity: AtomicU64::new(opened.capacity) }
    }

    /// The geometry as it is now.
    pub(crate) fn get(&self) -> Geometry {
        Geometry { capacity: self.capacity(), ..self.opened }
    }

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// From now on requests may reach up to `capacity`, in bytes.
    pub(crate) fn grow_to(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::AcqRel);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct HostFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) kind: Kind,
    pub(crate) mode: CacheMode,
    pub(crate) read_only: bool,
    pub(crate) geometry: LiveGeometry,
    /// Which engine serves it.
    pub(crate) engine: EngineSelection,
    /// Present when the page cache is bypassed.
    pub(crate) direct: Option<DirectAlignment>,
    /// What the host's own discarding and zeroing want ranges to be multiples of, in bytes.
    pub(crate) range_unit: u32,
    /// Required from the start where a guest may write parts of what direct I/O takes.
    pub(crate) range_lock: RangeLock,
    pub(crate) latch: SyncLatch,
    pub(crate) space: SpaceWatch,
    pub(crate) clock: Clock,
    pub(crate) soft_limit: Option<SoftLimit>,
    /// What became of what was to be discarded.
    pub(crate) trimmed: Account,
    /// Whether transfers go on.
    pub(crate) activity: Activity,
    pub(crate) detect_zeroes: DetectZeroes,
    /// How many ranges the host is zeroing.
    pub(crate) zeroing: AtomicUsize,
    pub(crate) failures: FailureLog,
    pub(crate) discard_refusal_noted: AtomicBool,
}

/// What an engine has opened of the disk.
#[derive(Debug)]
pub(crate) struct EngineFiles {
    /// For reads and writes.
    pub(crate) disk: File,
    /// For `fdatasync`.
    pub(crate) syncs: File,
}

impl EngineFiles {
    /// The two, and what ranges are discarded and zeroed with: on a block device the description that
    /// holds it exclusively, because to any other the kernel says `EBUSY` where the page cache is dirty.
    pub(crate) fn with_ranges<'a>(&'a self, host: &'a HostFile) -> [BorrowedFd<'a>; 3] {
        let ranges = if host.is_block_device() { &host.file } else { &self.disk };
        [self.disk.as_fd(), self.syncs.as_fd(), ranges.as_fd()]
    }
}

/// What is to be done with a request before the host is asked.
pub(crate) enum Admission {
    /// The host has to carry it out.
    Carry,
    /// It is complete already.
    Settled(io::Result<()>),
}

impl HostFile {
    /// Opens the same file twice more for one engine: for its I/O, and for its `fdatasync`. Write-back
    /// errors are reported once per open file description, so that one shared by two engines, or by
    /// durable writes and flushes, would tell only the first to ask.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn open_for_engine(&self) -> Result<EngineFiles, OpenError> {
        let open = || {
            let what = "open it for an engine";
            open_again(&self.file, flags_of(self.mode, self.read_only))
                .map_err(|source| OpenError::Host { path: self.path.clone(), what, source })
        };
        Ok(EngineFiles { disk: without_access_times(open()?), syncs: open()? })
    }

    /// What the disk's size has to be a multiple of, in bytes: a write of the last block must not make
    /// the file longer.
    pub(crate) fn size_unit(&self) -> u32 {
        let block = self.geometry.get().logical_block;
        self.direct.map_or(block, |direct| direct.offset.max(block))
    }

    /// See [`crate::Backend::status`].
    pub(crate) fn status(&self) -> DiskStatus {
        DiskStatus {
            engine: self.engine.last(),
            lost_writes: self.latch.check().is_err(),
            enospc_hold: self.space.held(),
            discards: self.trimmed.read(),
            soft_limit: self.soft_limit.as_ref().map(SoftLimit::state),
        }
    }

    pub(crate) fn is_block_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// The limits of discards if a device's whole granules read zero after one, so that zeroing may be that.
    pub(crate) fn zeroes_by_discarding(&self) -> Option<DiscardLimits> {
        self.geometry.opened.discard.filter(|limits| self.is_block_device() && limits.reads_zero)
    }

    /// Judges a request that moves `bytes` by its segments. Devices check what guests ask, so a refusal here is a bug of ours.
    pub(crate) fn admit(&self, op: Operation, bytes: u64) -> Admission {
        let (start, len) = match op {
            Operation::Flush if self.mode.flush_action() == FlushAction::Ignore => {
                return Admission::Settled(Ok(()));
            }
            Operation::Flush => (0, 0),
            Operation::Read { at: ByteOffset(at) }
            | Operation::Write { at: ByteOffset(at), .. } => (at, bytes),
            // Half of it is only compared.
            Operation::CompareAndWrite { at: ByteOffset(at), .. } => (at, bytes / 2),
            Operation::Discard { range: ByteRange { start, len }, .. }
            | Operation::WriteZeroes { range: ByteRange { start, len }, .. } => (start.0, len),
        };
        let writes = !matches!(op, Operation::Read { .. } | Operation::Flush);
        let in_bounds = start.checked_add(len).is_some_and(|end| end <= self.geometry.capacity());
        if !(in_bounds && self.is_block_aligned(start | len)) {
            return Admission::Settled(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        if writes && self.read_only {
            return Admission::Settled(Err(io::Error::from_raw_os_error(libc::EROFS)));
        }
        if let Err(lost) = self.check_promise(op) {
            return Admission::Settled(Err(lost));
        }
        if len == 0 && op != Operation::Flush {
            return Admission::Settled(Ok(()));
        }
        Admission::Carry
    }

    /// Whether a thread that only asks for a transfer may have to wait at times: through the page cache of a block device, Linux
    /// lets none begin while a part of it is zeroed (as of 6.18, and that without asking whether one would rather not wait).
    #[inline]
    pub(crate) fn may_keep_waiting(&self) -> bool {
        self.is_block_device() && self.direct.is_none()
    }

    /// Whether it may have to now.
    pub(crate) fn keeps_waiting(&self) -> bool {
        self.may_keep_waiting() && self.zeroing.load(Ordering::Relaxed) > 0
    }

    /// A call that keeps nobody waiting who asks it.
    pub(crate) fn patiently(&self, call: Call) -> Call {
        let transfers = matches!(call.ask, Ask::Read { .. } | Ask::Write { .. });
        Call { may_block: call.may_block || (transfers && self.keeps_waiting()), ..call }
    }

    /// Whether [`HostFile::admit`] would let the host carry out such a transfer, which promises no durability.
    #[inline]
    pub(crate) fn may_transfer(&self, at: u64, bytes: u32, writes: bool) -> bool {
        let len = u64::from(bytes);
        self.is_block_aligned(at | len)
            && at.checked_add(len).is_some_and(|end| end <= self.geometry.capacity())
            && !(writes && self.read_only)
    }

    /// Whether all of the bits that were put together are of whole blocks.
    #[inline]
    fn is_block_aligned(&self, bits: u64) -> bool {
        // A power of two.
        bits & (u64::from(self.geometry.opened.logical_block) - 1) == 0
    }

    /// Whether what `op` promises of durability can still be kept.
    ///
    /// # Errors
    ///
    /// `EIO` when acknowledged data was lost before.
    #[inline]
    pub(crate) fn check_promise(&self, op: Operation) -> io::Result<()> {
        if promises_durability(op) { self.latch.check() } else { Ok(()) }
    }

    /// Makes all completed writes durable by `fdatasync`, which blocks.
    ///
    /// # Errors
    ///
    /// The host's error, now or before; data may be lost.
    pub(crate) fn sync_with(&self, fdatasync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.latch.check()?;
        fdatasync().inspect_err(|error| self.sync_failed(error))
    }

    /// Latches a failed `fdatasync`.
    pub(crate) fn sync_failed(&self, error: &io::Error) {
        if self.latch.set() {
            tracing::error!(
                path = %self.path.display(), %error,
                "write-back failed: acknowledged data may be lost; flushes fail until the disk is reopened"
            );
        }
    }

    /// Latches a failed durable write where it may stand for more than itself: through the page
    /// cache, its `RWF_DSYNC` half takes the error of earlier writes' pages (past it: ADR 13).
    pub(crate) fn durable_write_failed(&self, error: &io::Error) {
        let too_large = error.raw_os_error() == Some(libc::EFBIG);
        let own_error = self.is_own_want_of_space(error) || (!self.is_block_device() && too_large);
        if self.direct.is_none() && !own_error {
            self.sync_failed(error);
        }
    }

    /// Whether a durable write failed for want of space and nothing but itself is lost. Past the page
    /// cache that is so. Through it, file systems reserve space before they take the data; where one
    /// below them runs out while earlier writes' pages go out, the error reaches the next flush as
    /// well, whose descriptor no write uses. A block device takes any data and fails only then.
    pub(crate) fn is_own_want_of_space(&self, error: &io::Error) -> bool {
        is_want_of_space(error) && (self.direct.is_some() || !self.is_block_device())
    }

    /// Says once that discards free nothing here.
    pub(crate) fn note_discard_refusal(&self) {
        if !self.discard_refusal_noted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %self.path.display(),
                "the host cannot discard here: the guest's discards succeed and free nothing"
            );
        }
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        lock::release(&self.file);
    }
}

/// The flags a disk is opened with.
pub(crate) fn flags_of(mode: CacheMode, read_only: bool) -> OFlags {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let direct = if mode.is_direct() { OFlags::DIRECT } else { OFlags::empty() };
    access | direct | OFlags::CLOEXEC
}

/// Opens what `fd` refers to, whatever its path has become. Needs `/proc`.
///
/// # Errors
///
/// The host's error.
pub(crate) fn open_again(fd: impl AsFd, flags: OFlags) -> io::Result<File> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(File::from(rustix::fs::open(link, flags, Mode::empty())?))
}

/// Lets reads not be noted in the file's times, which costs each of them. That is for its owner (`open(2)`, `O_NOATIME`): where
/// another is refused, reads are noted.
fn without_access_times(file: File) -> File {
    if let Ok(flags) = rustix::fs::fcntl_getfl(&file) {
        let _ = rustix::fs::fcntl_setfl(&file, flags | OFlags::NOATIME);
    }
    file
}

/// Whether the completion of `op` says that something survives a power cut.
pub(crate) fn promises_durability(op: Operation) -> bool {
    matches!(
        op,
        Operation::Flush
            | Operation::Write { durability: Durability::Durable, .. }
            | Operation::CompareAndWrite { durability: Durability::Durable, .. }
            | Operation::Discard { durability: Durability::Durable, .. }
            | Operation::WriteZeroes { durability: Durability::Durable, .. }
    )
}
