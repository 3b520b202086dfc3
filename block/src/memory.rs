//! A disk in this process's memory: the backend to copy when you write one.
//!
//! [`MemoryDisk`] answers for the disk, [`MemoryEngine`] for one queue. Requests complete within
//! [`IoEngine::push`], so that nothing is ever in flight between two calls. Every write is as
//! durable as the process, so a flush has nothing to do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;

use crate::segment::{gather, scatter, total_len};
use crate::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Completion, Crossing, DiscardStats,
    DiskStatus, EngineChoice, EngineSetup, Extent, Geometry, IoEngine, Miscompare, OpenError,
    Operation, Request, ResizeError, Segment, Wake,
};

/// A disk in memory. Clones share one disk.
#[derive(Clone, Debug)]
pub struct MemoryDisk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    geometry: Geometry,
    mode: CacheMode,
    read_only: bool,
    /// As long as the disk.
    content: Mutex<Vec<u8>>,
    discarded: AtomicU64,
}

impl MemoryDisk {
    /// A disk of zeroes. `geometry.capacity` bytes are allocated.
    #[must_use]
    pub fn new(geometry: Geometry, mode: CacheMode, read_only: bool) -> Self {
        let len = usize::try_from(geometry.capacity).unwrap_or(usize::MAX);
        let content = Mutex::new(vec![0; len]);
        let discarded = AtomicU64::new(0);
        Self(Arc::new(Inner { geometry, mode, read_only, content, discarded }))
    }

    /// The disk's content, locked.
    pub fn content(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are valid whatever a panicking thread has left of them.
        self.0.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(&self, op: Operation, segments: &[Segment]) -> io::Result<()> {
        if self.0.read_only && !matches!(op, Operation::Read { .. } | Operation::Flush) {
            return Err(Errno::ROFS.into());
        }
        let len = total_len(segments) as u64;
        let mut content = self.content();
        match op {
            Operation::Read { at } => {
                scatter(part(&mut content, at, len)?, segments);
            }
            Operation::Write { at, .. } => {
                gather(segments, part(&mut content, at, len)?);
            }
            Operation::CompareAndWrite { at, .. } => {
                compare_and_write(part(&mut content, at, len / 2)?, segments)?;
            }
            Operation::Flush => {}
            Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
                part(&mut content, range.start, range.len)?.fill(0);
                self.count_discard(op);
            }
        }
        Ok(())
    }

    fn count_discard(&self, op: Operation) {
        if let Operation::Discard { range, .. }
        | Operation::WriteZeroes { range, unmap: true, .. } = op
        {
            self.0.discarded.fetch_add(range.len, Ordering::Relaxed);
        }
    }
}

/// The bytes of a range of the disk.
///
/// # Errors
///
/// `EINVAL` if the range is not within the disk.
fn part(content: &mut [u8], at: ByteOffset, len: u64) -> io::Result<&mut [u8]> {
    let start = usize::try_from(at.0).ok();
    let end = at.0.checked_add(len).and_then(|end| usize::try_from(end).ok());
    let range = start.zip(end).and_then(|(start, end)| content.get_mut(start..end));
    Ok(range.ok_or(Errno::INVAL)?)
}

/// Writes the second half of the segments over `found` if the first half equals it.
fn compare_and_write(found: &mut [u8], segments: &[Segment]) -> io::Result<()> {
    let mut data = vec![0; found.len() * 2];
    gather(segments, &mut data);
    let (expected, new) = data.split_at(found.len());
    if let Some(offset) = found.iter().zip(expected).position(|(a, b)| a != b) {
        return Err(io::Error::other(Miscompare { offset: offset as u64 }));
    }
    found.copy_from_slice(new);
    Ok(())
}

impl Backend for MemoryDisk {
    fn geometry(&self) -> Geometry {
        Geometry { capacity: self.content().len() as u64, ..self.0.geometry }
    }

    fn cache_mode(&self) -> CacheMode {
        self.0.mode
    }

    fn read_only(&self) -> bool {
        self.0.read_only
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        let engine = MemoryEngine::new(self.clone(), setup.kick);
        let refused = |source| OpenError::Host {
            path: "memory".into(),
            what: "get descriptors for an engine",
            source,
        };
        Ok(Box::new(engine.map_err(refused)?))
    }

    fn status(&self) -> DiskStatus {
        let bytes = self.0.discarded.load(Ordering::Relaxed);
        DiskStatus {
            engine: EngineChoice { name: "memory", reason: "the disk is in memory".into() },
            lost_writes: None,
            host_errors: None,
            enospc_hold: None,
            discards: DiscardStats { requested: bytes, skipped: bytes, ..DiscardStats::default() },
            store: crate::StoreFacts::default(),
            soft_limit: None,
            ephemeral: None,
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn stop_holding(&self) {}

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let len = self.geometry().capacity.saturating_sub(from.0);
        let all = Extent { range: ByteRange { start: from, len }, data: true };
        Ok([all].into_iter().filter(|_| len > 0).take(limit).collect())
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(None)
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        Ok(None)
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let mut content = self.content();
        let from = content.len() as u64;
        let to = size.unwrap_or(from);
        let unit = self.0.geometry.logical_block;
        if self.0.read_only {
            return Err(ResizeError::ReadOnly);
        }
        if to < from {
            return Err(ResizeError::Shrink { from, to });
        }
        if !to.is_multiple_of(u64::from(unit)) {
            return Err(ResizeError::Unaligned { size: to, unit });
        }
        content.resize(usize::try_from(to).unwrap_or(usize::MAX), 0);
        Ok(to)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The engine of one queue.
struct MemoryEngine {
    disk: MemoryDisk,
    completed: Vec<Completion>,
    kick: OwnedFd,
    /// Signalled when the list of completions ceases to be empty.
    signal: OwnedFd,
    /// Watches the two descriptors above.
    events: OwnedFd,
}

impl MemoryEngine {
    fn new(disk: MemoryDisk, kick: BorrowedFd<'_>) -> io::Result<Self> {
        let kick = kick.try_clone_to_owned()?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [&kick, &signal] {
            epoll::add(&events, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Self { disk, completed: Vec::new(), kick, signal, events })
    }

    /// Whether the kick was signalled, which is consumed.
    fn take_kick(&self) -> bool {
        take(&self.kick)
    }

    fn sleep(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Reads an eventfd; returns whether it was signalled.
fn take(eventfd: &OwnedFd) -> bool {
    let ready = poll(&mut [PollFd::new(eventfd, PollFlags::IN)], Some(&Timespec::default()));
    ready == Ok(1) && rustix::io::read(eventfd, &mut [0; 8]).is_ok()
}

impl IoEngine for MemoryEngine {
    fn push(&mut self, request: Request<'_>) {
        let Request { tag, op, segments } = request;
        let result = self.disk.execute(op, segments);
        if self.completed.is_empty() {
            // A full counter is readable as well.
            let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
        }
        self.completed.push(Completion { tag, result });
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let op = Operation::volatile_transfer(at, is_write);
        self.push(Request { tag, op, segments: &mut vec![segment] });
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        completed.append(&mut self.completed);
    }

    fn parked(&self) -> usize {
        0
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn cancel(&mut self, _tag: u16) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        !self.completed.is_empty()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        self.take_kick();
        take(&self.signal);
    }

    fn wait(&mut self) -> io::Result<Wake> {
        loop {
            let kicked = self.take_kick();
            if kicked || self.is_ready() {
                return Ok(Wake { kicked });
            }
            take(&self.signal);
            self.sleep()?;
        }
    }
}
