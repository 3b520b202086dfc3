//! The contract between a disk's control plane, its engines and the device models.
//!
//! No method has a default: a wrapper that forgot one would report a healthy disk where there is
//! none.

use std::any::Any;
use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

use crate::{
    BackingSpace, ByteOffset, CacheMode, Completion, Crossing, DiscardStats, EnospcHold, Extent,
    Geometry, HostErrors, ImageFormat, LostWrites, Request, Segment, SoftLimitState, StoreFacts,
};

/// A region of memory that holds the segments of requests, so that an engine may register it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// Parameters of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineSetup<'a> {
    /// Maximum number of requests in flight. Tags are below it.
    pub depth: u16,
    /// The memory that holds all segments. The owner keeps it mapped while the engine exists.
    pub memory: &'a [MemoryRegion],
    /// An eventfd that ends [`IoEngine::wait`] when it is signalled, including a signal from
    /// before the engine was created.
    pub kick: BorrowedFd<'a>,
}

/// Why a disk or its engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call on the backing file failed.
    #[error("{path}: cannot {what}: {source}")]
    Host {
        /// The backing file.
        path: PathBuf,
        /// The operation that failed, as "cannot ...".
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The file cannot serve as a disk.
    #[error("{path}: {why}")]
    Unsuitable {
        /// The backing file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The image has the signature of another format than raw.
    #[error("{path}: not a raw image but {format}; {remedy}")]
    Foreign {
        /// The backing file.
        path: PathBuf,
        /// Its format.
        format: ImageFormat,
        /// How to convert it.
        remedy: String,
    },
    /// A link on the way to the device names another volume.
    #[error("{path}: {link} names {named}, but leads to {found}; {}", WRONG_LINK_REMEDY)]
    WrongLink {
        /// The backing file.
        path: PathBuf,
        /// The link.
        link: PathBuf,
        /// The volume that it names.
        named: String,
        /// The volume that it leads to.
        found: String,
    },
    /// Another process holds it.
    #[error("{path}: in use by {}", user(*.pid))]
    InUse {
        /// The backing file.
        path: PathBuf,
        /// The process that holds it, if the host reports it.
        pid: Option<u32>,
    },
    /// The kernel refused an io_uring.
    #[error("this host refuses io_uring ({0}); see the sysctl kernel.io_uring_disabled")]
    NoIoUring(#[source] io::Error),
}

/// The remedy of a link that leads to another volume.
pub const WRONG_LINK_REMEDY: &str = "name the device by another path; `udevadm info \
    --export-db` shows the links as udev knows them, and `udevadm settle` waits for those that it \
    has not made yet";

fn user(pid: Option<u32>) -> String {
    let unnamed = || "another process, or by the last I/O of one that was killed".into();
    pid.map_or_else(unnamed, |pid| format!("process {pid}"))
}

/// Why a disk kept its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The new size is smaller than the capacity the guest knows.
    #[error(
        "a disk cannot shrink while a guest uses it: its capacity is {from} bytes, the new size {to} bytes"
    )]
    Shrink {
        /// Capacity that the guest knows, in bytes.
        from: u64,
        /// Requested or detected size, in bytes.
        to: u64,
    },
    /// The new size is not a multiple of the block size.
    #[error("{size} bytes is not a multiple of the disk's block size of {unit} bytes")]
    Unaligned {
        /// Requested or detected size, in bytes.
        size: u64,
        /// The logical block or the alignment of direct I/O, whichever is larger, in bytes.
        unit: u32,
    },
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The disk is not stored in a regular file, so only the host can resize it.
    #[error("the disk is not a regular file: only the host can resize it")]
    NotAFile,
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Host {
        /// The operation that failed, as "cannot ...".
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// An engine and the reason for its selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// Name of the engine: `io_uring`, `threads`, or that of another backend.
    pub name: &'static str,
    /// Why it was selected.
    pub reason: Cow<'static, str>,
}

/// The changes of an ephemeral disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EphemeralState {
    /// Bytes in blocks that were written.
    pub used: u64,
    /// Most bytes; `None` without a limit.
    pub limit: Option<u64>,
    /// Requests that were refused with ENOSPC, as they would have exceeded the limit.
    pub refused: u64,
}

/// State of a disk that changes while it is in use, read from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// The engine that was made last.
    pub engine: EngineChoice,
    /// Acknowledged data was lost, or may be: flushes fail until the disk is reopened.
    pub lost_writes: Option<LostWrites>,
    /// Requests that the host has failed; `None` if there are none.
    pub host_errors: Option<HostErrors>,
    /// Requests held for ENOSPC; `None` if there are none.
    pub enospc_hold: Option<EnospcHold>,
    /// Bytes discarded since the disk was opened.
    pub discards: DiscardStats,
    /// Consequences of the storage below the disk, as they were when it was opened.
    pub store: StoreFacts,
    /// The soft limit on the space of the backing store; `None` if none is configured.
    pub soft_limit: Option<SoftLimitState>,
    /// The changes of an ephemeral disk; `None` for a disk that is kept.
    pub ephemeral: Option<EphemeralState>,
}

/// Why [`IoEngine::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The kick descriptor was signalled since the last wait. The engine has consumed the signal:
    /// the caller need not read the descriptor.
    pub kicked: bool,
}

/// The control plane of one disk, shared by all its queues.
pub trait Backend: Send + Sync {
    /// The current geometry.
    fn geometry(&self) -> Geometry;

    /// The cache mode.
    fn cache_mode(&self) -> CacheMode;

    /// Writes are refused.
    fn read_only(&self) -> bool;

    /// Makes an engine, on the thread that will use it.
    ///
    /// # Errors
    ///
    /// The host refuses a resource of the engine.
    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError>;

    /// The current state. Never blocks and never asks the host.
    fn status(&self) -> DiskStatus;

    /// Makes all completed writes durable. Blocks; not for the data path.
    ///
    /// # Errors
    ///
    /// The host's error; acknowledged data may be lost.
    fn sync(&self) -> io::Result<()>;

    /// Disables `on_enospc = "hold"` for good: held requests are retried a last time, then
    /// fail.
    fn stop_holding(&self);

    /// Data and holes from `from` to the end of the disk. Stops after `limit` extents, and after
    /// about a millisecond if it has found some. Blocks, on metadata only.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>>;

    /// Space of the backing store; `None` if the host does not report it. May block on metadata.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn backing_space(&self) -> io::Result<Option<BackingSpace>>;

    /// Measures the space of the backing store and returns whether the soft limit was crossed since
    /// the last call. Blocks.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn check_soft_limit(&self) -> io::Result<Option<Crossing>>;

    /// Resizes the disk and returns its new capacity in bytes. With a `size`, first grows the
    /// backing file to it, durably; without one, adopts the size that the host gave the backing
    /// file. Engines then accept requests up to the new end. Blocks; not for the data path.
    ///
    /// # Errors
    ///
    /// See [`ResizeError`]. The capacity is unchanged.
    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError>;

    /// The disk itself, for controls that only its kind has, such as [`crate::snapshot`].
    fn as_any(&self) -> &dyn Any;
}

/// The data plane of one queue, used from one thread.
///
/// Each pushed request completes exactly once. Requests in flight are not ordered with respect to
/// each other. A flush covers the writes whose completions were reaped before it was pushed.
/// Dropping an engine waits for the requests in flight: afterwards no memory is accessed.
pub trait IoEngine {
    /// Accepts a request. The caller keeps at most `depth` in flight.
    fn push(&mut self, request: Request<'_>);

    /// Accepts a read, or a write that promises no durability, of one segment. As
    /// [`IoEngine::push`], without its list of segments: for an engine that forwards requests.
    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool);

    /// Submits everything pushed to the host and lets it post completions. Does not wait. Costs a
    /// system call only if there is something to submit or to post, so that a polling worker
    /// may call it in each iteration.
    ///
    /// # Errors
    ///
    /// The host refuses the ring itself. Dropping the engine then completes the requests in flight.
    fn submit(&mut self) -> io::Result<()>;

    /// Appends the available completions to `completed`.
    fn reap(&mut self, completed: &mut Vec<Completion>);

    /// Number of requests in flight that are parked on a timer: held for ENOSPC, or discards that
    /// are merged or paced. No host I/O is outstanding for them, and [`IoEngine::poll_fd`] does
    /// not signal when they come due.
    fn parked(&self) -> usize;

    /// When the first [parked](Self::parked) request comes due, or another that the engine holds
    /// for a moment and [`IoEngine::poll_fd`] may not signal: the caller then submits and reaps.
    fn due(&self) -> Option<Instant>;

    /// Completes a request with `ECANCELED` if the host is not working on it. Returns `false` if it
    /// is: the request then completes as usual.
    fn cancel(&mut self, tag: u16) -> bool;

    /// Whether [`IoEngine::wait`] would return immediately, as far as is known without a system
    /// call.
    fn is_ready(&self) -> bool;

    /// A descriptor for a caller that waits for several engines at once. It becomes readable when a
    /// completion may be available or the kick is signalled, and stays readable until
    /// [`IoEngine::clear_poll_fd`]. The caller has to submit and reap when requests are
    /// [due](Self::due) as well.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>>;

    /// Clears the readiness of [`IoEngine::poll_fd`]. The caller [reaps](Self::reap) afterwards.
    fn clear_poll_fd(&mut self);

    /// Submits, then sleeps until a completion is available or the kick descriptor is signalled.
    ///
    /// # Errors
    ///
    /// As [`IoEngine::submit`].
    fn wait(&mut self) -> io::Result<Wake>;
}
