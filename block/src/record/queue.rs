//! The recording of one queue: numbers its requests, copies their data and passes what has
//! completed to the log thread. Runs on the queue's own thread.
//!
//! Nothing here allocates, locks or makes a system call for a request. The log thread is woken once
//! for all completions that are reaped together, if it sleeps.

use std::sync::Arc;

use super::channel::{Channel, Completed};
use super::chunk::{CHUNK, Chunk};
use super::format::{LOG_SECTOR, LogKind};
use super::recorder::{Lane, Recorder};
use crate::{
    ByteOffset, ByteRange, Completion, Durability, Miscompare, Operation, Segment, gather,
    total_len,
};

/// Whether a request may be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Begun {
    /// It may.
    Yes,
    /// There is no memory for it now.
    Full,
}

/// A request in flight, by its tag.
#[derive(Debug)]
struct RecordSlot {
    /// It is recorded.
    is_used: bool,
    request: Completed,
    /// Its data.
    chunks: Vec<Chunk>,
}

/// The recorded part of an operation.
struct Recorded {
    kind: LogKind,
    range: ByteRange,
    fua: bool,
    /// Bytes of the segments before the data.
    skipped: usize,
    /// Bytes of the data.
    data: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct QueueRecorder {
    recorder: Arc<Recorder>,
    lane: Arc<Lane>,
    slots: Box<[RecordSlot]>,
    /// Slots in use.
    in_flight: usize,
    /// Rows of the channel for requests in flight.
    promised: usize,
    free: Vec<Chunk>,
    /// Chunks of requests in flight.
    lent: usize,
    /// The time of the requests that are issued together.
    issued_ns: Option<u64>,
}

impl QueueRecorder {
    /// For requests with tags below `depth`.
    pub(super) fn new(
        recorder: Arc<Recorder>,
        lane: Arc<Lane>,
        free: Vec<Chunk>,
        depth: u16,
    ) -> Self {
        let vacant =
            |_| RecordSlot { is_used: false, request: Completed::BLANK, chunks: Vec::new() };
        let slots = (0..depth).map(vacant).collect();
        Self { recorder, lane, slots, in_flight: 0, promised: 0, free, lent: 0, issued_ns: None }
    }

    /// Requests that are issued from now on have a later time than those before.
    #[inline]
    pub(super) fn end_batch(&mut self) {
        self.issued_ns = None;
        // Chunks that are still in a cache are used before others.
        self.lane.channel.take_freed(&mut self.free);
    }

    /// Numbers a request that is about to be pushed, and copies its data.
    #[inline]
    pub(super) fn begin(&mut self, tag: u16, op: Operation, segments: &[Segment]) -> Begun {
        if matches!(op, Operation::Read { .. }) || !self.recorder.is_active() {
            return Begun::Yes;
        }
        let Some(recorded) = recorded(op, segments) else { return Begun::Yes };
        self.record(tag, &recorded, segments)
    }

    fn record(&mut self, tag: u16, recorded: &Recorded, segments: &[Segment]) -> Begun {
        let chunks = recorded.data.div_ceil(CHUNK);
        if !self.has_room(chunks) {
            return self.refuse(recorded.data);
        }
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return Begun::Yes };
        slot.chunks.extend((0..chunks).filter_map(|_| self.free.pop()));
        if let ([segment], 0) = (segments, recorded.skipped) {
            copy_one(*segment, &mut slot.chunks, &self.lane.channel);
        } else {
            copy(segments, recorded, &mut slot.chunks, &self.lane.channel);
        }
        let issued_ns = *self.issued_ns.get_or_insert_with(|| self.recorder.now_ns());
        let (issue, issued_after) = self.recorder.issue();
        let sectors = |bytes| bytes / LOG_SECTOR as u64;
        slot.request = Completed {
            kind: recorded.kind,
            fua: recorded.fua,
            sector: sectors(recorded.range.start.0),
            sectors: sectors(recorded.range.len),
            issue,
            issued_after,
            issued_ns,
            ..Completed::BLANK
        };
        slot.is_used = true;
        self.in_flight += 1;
        self.promised += Channel::rows_of(chunks);
        self.lent += chunks;
        Begun::Yes
    }

    /// Whether there is memory for a request.
    fn has_room(&mut self, chunks: usize) -> bool {
        if self.free.len() < chunks {
            self.lane.channel.take_freed(&mut self.free);
        }
        self.free.len() >= chunks
            && self.lane.channel.free_rows() >= self.promised + Channel::rows_of(chunks)
    }

    #[cold]
    fn refuse(&self, bytes: usize) -> Begun {
        let most = self.lane.channel.max_bytes;
        if bytes <= most {
            return Begun::Full;
        }
        let why = format!("a write of {bytes} bytes came; one of {most} bytes can be recorded");
        self.recorder.stop(&why, true);
        Begun::Yes
    }

    /// Asks the log thread to kick the queue when there may be memory again. The caller looks for
    /// it again before it sleeps.
    pub(super) fn starve(&self) {
        self.lane.channel.starve();
    }

    /// Whether the log thread has requests of this queue, or memory for their data.
    #[cold]
    pub(super) fn is_owed(&mut self) -> bool {
        let channel = &self.lane.channel;
        channel.take_freed(&mut self.free);
        self.free.len() + self.lent < channel.max_bytes / CHUNK || !channel.is_empty()
    }

    /// Ends the recording because a request waited for too long.
    #[cold]
    pub(super) fn give_up(&mut self) {
        let why = if self.is_owed() {
            "the storage of the log is too slow for the guest's writes"
        } else {
            "requests that the disk holds have all memory of the recording"
        };
        self.recorder.stop(why, true);
    }

    /// Numbers completions that the disk has handed out, and passes them to the log thread.
    #[inline]
    pub(super) fn complete(&mut self, completions: &[Completion]) {
        if self.in_flight > 0 && !completions.is_empty() {
            let results = || completions.iter().map(|done| (done.tag, errno(done)));
            self.pass_on(results);
        }
    }

    /// Passes requests on, each with its tag and its errno. Those with `None` did nothing.
    fn pass_on<I: Iterator<Item = (u16, Option<u16>)>>(&mut self, results: impl Fn() -> I) {
        let is_used = |tag: u16| self.slots.get(usize::from(tag)).is_some_and(|slot| slot.is_used);
        let count = results().filter(|(tag, errno)| errno.is_some() && is_used(*tag)).count();
        // Only what is logged takes a number, as numbers have no gaps.
        let mut completion = if count > 0 { self.recorder.complete(count as u64) } else { 0 };
        let completed_ns = self.recorder.now_ns();
        let is_active = self.recorder.is_active();
        let mut sender = self.lane.channel.sender();
        for (tag, errno) in results() {
            let slot = self.slots.get_mut(usize::from(tag)).filter(|slot| slot.is_used);
            let Some(slot) = slot else { continue };
            slot.is_used = false;
            self.in_flight -= 1;
            self.promised -= Channel::rows_of(slot.chunks.len());
            self.lent -= slot.chunks.len();
            let Some(errno) = errno.filter(|_| is_active) else {
                self.free.append(&mut slot.chunks);
                continue;
            };
            let request = Completed { completion, completed_ns, errno, ..slot.request };
            sender.push(&request, &mut slot.chunks);
            completion += 1;
        }
        sender.publish();
        if count > 0 {
            self.recorder.wake();
        }
    }
}

impl Drop for QueueRecorder {
    /// After the engine: those still in flight were done in full, in part or not, and the guest has
    /// no answer.
    fn drop(&mut self) {
        if self.in_flight > 0 {
            let used: Vec<_> = (0u16..)
                .zip(&self.slots)
                .filter(|(_, slot)| slot.is_used)
                .map(|(tag, _)| tag)
                .collect();
            self.pass_on(|| used.iter().map(|tag| (*tag, Some(CANCELED))));
        }
        self.lane.channel.close();
        self.recorder.wake();
    }
}

const CANCELED: u16 = errno_of(libc::ECANCELED);

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "those of Linux are positive and below 4096"
)]
const fn errno_of(number: i32) -> u16 {
    number as u16
}

/// The recorded part of an operation; `None` for one that changes nothing, or that no disk admits.
fn recorded(op: Operation, segments: &[Segment]) -> Option<Recorded> {
    let bytes = if op.is_transfer() { total_len(segments) } else { 0 };
    let range = op.range(bytes as u64);
    let (kind, data, durability) = match op {
        Operation::Read { .. } => return None,
        Operation::Write { durability, .. } => (LogKind::Write, bytes, durability),
        // The first half is compared only.
        Operation::CompareAndWrite { durability, .. } => (LogKind::Write, bytes / 2, durability),
        Operation::Flush => (LogKind::Flush, 0, Durability::Volatile),
        Operation::Discard { durability, .. } => (LogKind::Discard, 0, durability),
        Operation::WriteZeroes { durability, .. } => (LogKind::Zero, 0, durability),
    };
    let ByteRange { start: ByteOffset(start), len } = range;
    let is_whole = (start | len).is_multiple_of(LOG_SECTOR as u64);
    let changes =
        kind == LogKind::Flush || (len > 0 && is_whole && start.checked_add(len).is_some());
    let fua = durability == Durability::Durable;
    changes.then_some(Recorded { kind, range, fua, skipped: bytes - data, data })
}

/// Copies data that is one segment to its chunks.
fn copy_one(mut segment: Segment, chunks: &mut [Chunk], channel: &Channel) {
    for chunk in chunks {
        let copied = gather(std::slice::from_ref(&segment), channel.memory.bytes_mut(chunk));
        segment.advance(copied);
    }
}

/// Copies the data of a request to its chunks.
fn copy(segments: &[Segment], recorded: &Recorded, chunks: &mut [Chunk], channel: &Channel) {
    let (mut skip, mut left) = (recorded.skipped, recorded.data);
    let mut segments = segments.iter().filter_map(|segment| {
        let mut segment = *segment;
        let skipped = skip.min(segment.len());
        skip -= skipped;
        segment.advance(skipped);
        (segment.len() > 0).then_some(segment)
    });
    let mut current = segments.next();
    for chunk in chunks {
        let len = left.min(CHUNK);
        left -= len;
        let bytes = channel.memory.bytes_mut(chunk);
        let mut part = bytes.get_mut(..len).unwrap_or_default();
        while let (false, Some(segment)) = (part.is_empty(), &mut current) {
            let copied = gather(std::slice::from_ref(segment), part);
            segment.advance(copied);
            if segment.len() == 0 {
                current = segments.next();
            }
            part = part.get_mut(copied..).unwrap_or_default();
        }
    }
}

/// The errno of a completed request, or 0; `None` if it did nothing.
fn errno(done: &Completion) -> Option<u16> {
    match &done.result {
        Ok(()) => Some(0),
        Err(error) => {
            if let Some(inner) = error.get_ref()
                && inner.is::<Miscompare>()
            {
                return None;
            }
            let errno = error.raw_os_error().and_then(|errno| u16::try_from(errno).ok());
            Some(errno.filter(|errno| *errno > 0).unwrap_or(errno_of(libc::EIO)))
        }
    }
}
