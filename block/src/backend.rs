//! The contract between a disk's control plane, its engines, and the device models above.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::{
    BackingSpace, ByteOffset, ByteRange, CacheMode, Completion, Crossing, Extent, Held, Request,
    SoftLimitState, Trimmed,
};

/// What a disk looks like. All figures in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk, a multiple of the logical block.
    pub capacity: u64,
    /// Smallest unit a request may address: 512 or 4096.
    pub logical_block: u32,
    /// Smallest unit written without a read-modify-write below, a multiple of the logical block.
    pub physical_block: u32,
    /// Preferred size and alignment of large requests, or 0 where the host names none.
    pub optimal_io: u32,
    /// What can be discarded; `None` where the host frees nothing.
    pub discard: Option<DiscardLimits>,
}

/// The host's own discard granularity, never an invented one. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The unit in which the host frees space.
    pub granularity: u32,
    /// Offset of the first unit's start.
    pub alignment: u32,
    /// Whether what holds no space reads as zeroes. Of block devices that is known of ZFS volumes only.
    pub reads_zero: bool,
}

/// Memory that requests' segments will come from, so that an engine may register it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: only an address and a length; see `EngineSetup::memory` for who keeps it valid.
unsafe impl Send for MemoryRegion {}

/// What an engine needs to know of its owner.
#[derive(Clone, Copy, Debug)]
pub struct EngineSetup<'a> {
    /// The most requests in flight; their tags are below it.
    pub depth: u16,
    /// Where segments come from. The owner keeps it mapped while the engine lives.
    pub memory: &'a [MemoryRegion],
    /// An eventfd; signalling it ends [`IoEngine::wait`]. One that was signalled before the engine
    /// was made starts it with a kick.
    pub kick: BorrowedFd<'a>,
}

/// Why a disk or its engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refused a call on the backing file.
    #[error("{path}: cannot {what}: {source}")]
    Host {
        /// The backing file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The file cannot be a disk.
    #[error("{path}: {why}")]
    Unsuitable {
        /// The backing file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process uses it.
    #[error("{path}: in use by {}", user(*.pid))]
    InUse {
        /// The backing file.
        path: PathBuf,
        /// The process that holds it, where the host says.
        pid: Option<u32>,
    },
    /// The kernel refused an io_uring.
    #[error("this host refuses io_uring ({0}); see the sysctl kernel.io_uring_disabled")]
    NoIoUring(#[source] io::Error),
}

fn user(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// Why a disk has the size it had before.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The new size is below the one the guest knows.
    #[error("a disk never shrinks under its guest: it has {from} bytes, and {to} are fewer")]
    Shrink {
        /// The size the guest knows, in bytes.
        from: u64,
        /// The size asked for or found, in bytes.
        to: u64,
    },
    /// The new size is not made of whole blocks.
    #[error("{size} bytes is not a multiple of the disk's block of {unit} bytes")]
    Unaligned {
        /// The size asked for or found, in bytes.
        size: u64,
        /// The logical block, or what direct I/O takes at least where that is more, in bytes.
        unit: u32,
    },
    /// The disk may not be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Only the host can change the size of what holds this disk.
    #[error("the disk is not a regular file, so only the host can give it another size")]
    NotAFile,
    /// The host refused.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// Which engine serves a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its name.
    pub name: &'static str,
    /// Why this one.
    pub reason: Cow<'static, str>,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The kick descriptor was signalled since the last wait. The engine has consumed the signal;
    /// the owner need not read the descriptor.
    pub kicked: bool,
}

/// The control plane of one disk. Shared by all its queues.
pub trait Backend: Send + Sync {
    /// What the disk looks like now.
    fn geometry(&self) -> Geometry;

    /// The disk's cache mode.
    fn cache_mode(&self) -> CacheMode;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Makes an engine. Called on the thread that will use it.
    ///
    /// # Errors
    ///
    /// When the host refuses what the engine needs.
    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError>;

    /// Which engine [`Backend::engine`] makes, and why. The choice can fall anew with each: this is the last.
    fn engine_choice(&self) -> Engine {
        Engine { name: "simulated", reason: "there is no host behind this disk".into() }
    }

    /// Makes all completed writes durable. Blocks; for orderly ends, not for the data path.
    ///
    /// # Errors
    ///
    /// The host's error; the data may be lost.
    fn sync(&self) -> io::Result<()>;

    /// Whether acknowledged data was lost: flushes fail until the disk is reopened.
    fn has_lost_writes(&self) -> bool {
        false
    }

    /// What waits for want of space on the host.
    fn held(&self) -> Option<Held> {
        None
    }

    /// Ends the holding for good: what waits for want of space is asked once more when its engine is next looked at, and
    /// then reported as failed.
    fn stop_holding(&self) {}

    /// What the host keeps data for and what it does not, from `from` to the end of the disk, or for the first `most`
    /// extents, or for as many as it tells of within about a millisecond, but a few. Blocks, but only on metadata.
    ///
    /// # Errors
    ///
    /// The host refuses to answer.
    fn allocation(&self, from: ByteOffset, most: usize) -> io::Result<Vec<Extent>> {
        let len = self.geometry().capacity.saturating_sub(from.0);
        let all = Extent { range: ByteRange { start: from, len }, data: true };
        Ok([all].into_iter().filter(|_| len > 0).take(most).collect())
    }

    /// How much space is left where the disk is stored; nothing where the host does not say.
    ///
    /// # Errors
    ///
    /// The host refuses to answer.
    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(None)
    }

    /// What became of what was asked to be discarded.
    fn trimmed(&self) -> Trimmed {
        Trimmed::default()
    }

    /// The mark on the space of what stores the disk, if it has one.
    fn soft_limit(&self) -> Option<SoftLimitState> {
        None
    }

    /// Looks whether the store's space has passed the disk's mark since the last look.
    ///
    /// # Errors
    ///
    /// The host refuses to say how much space there is.
    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        Ok(None)
    }

    /// Takes note of a new size and returns it, in bytes. With a `size` the disk first grows to it,
    /// which is durable on return; without one, whoever provides the disk has changed its size. From
    /// then on engines take requests up to the new end. Blocks; not for the data path.
    ///
    /// # Errors
    ///
    /// Why the disk has the size it had before.
    fn resize(&self, _size: Option<u64>) -> Result<u64, ResizeError> {
        Err(ResizeError::NotAFile)
    }
}

/// The data plane of one queue, used from one thread.
///
/// Each pushed request completes exactly once. Requests in flight are not ordered among each other;
/// a flush covers the writes whose completions were reaped before it was pushed. Dropping an engine
/// waits for what is in flight, so that no memory is touched afterwards.
pub trait IoEngine {
    /// Takes a request. At most `depth` are in flight, which the caller sees to.
    fn push(&mut self, request: Request<'_>);

    /// Hands everything pushed to the host, and lets it post completions. Does not wait. A worker
    /// that polls [`IoEngine::reap`] calls this on every turn: it costs a system call only when there
    /// is something to do.
    ///
    /// # Errors
    ///
    /// The host refuses the ring itself; requests in flight are then settled by dropping the engine.
    fn submit(&mut self) -> io::Result<()>;

    /// Appends the completions that are there to `completed`.
    fn reap(&mut self, completed: &mut Vec<Completion>);

    /// How many requests in flight wait for a time: until the host may have space, or it is a discard's turn. Nothing of them is on
    /// its way, and that the time has come need not show on [`IoEngine::descriptor`].
    fn held(&self) -> usize {
        0
    }

    /// Ends a request with `ECANCELED` that the host is not asked for now: one that waits for space, or for others.
    /// `false` if the host works on it: then it completes as if nothing had happened.
    fn cancel(&mut self, _tag: u16) -> bool {
        false
    }

    /// Whether [`IoEngine::wait`] would return at once, as far as is known without asking the host.
    fn is_ready(&self) -> bool {
        false
    }

    /// A descriptor to sleep on where [`IoEngine::wait`] would not do because there are several engines. It becomes
    /// readable when a completion may be there or the kick is signalled, and stays so until [`IoEngine::quiet`]. One that
    /// has [held](Self::held) requests wants to be looked at now and then all the same.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn descriptor(&mut self) -> io::Result<BorrowedFd<'_>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the descriptor silent until there is news. What it told of is to be [reaped](Self::reap) after that.
    fn quiet(&mut self) {}

    /// Submits, then sleeps until a completion is there or the kick descriptor is signalled.
    ///
    /// # Errors
    ///
    /// As [`IoEngine::submit`].
    fn wait(&mut self) -> io::Result<Wake>;
}
