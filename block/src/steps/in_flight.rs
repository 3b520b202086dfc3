//! One request in flight: what the host is asked next, and what its answers mean.

use std::io;
use std::ops::Range;
use std::time::Instant;

use super::bounce::{Bounce, fits};
use super::compare::Compare;
use super::cursor::Cursor;
use super::ranges::{Cut, Piece};
use super::zeroes::zeroes;
use super::{Ask, Call};
use crate::host_file::{DirectAlignment, HostFile};
use crate::range_lock::Claim;
use crate::{ByteRange, Durability, Operation, Segments, total_len};

/// What the host is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    /// Give blocks of a block device back (the block layer's discard).
    DiscardBlocks,
    /// Punch a hole. On a block device: zero by unmapping, or fail.
    PunchHole,
    /// Zero, keeping the space.
    ZeroRange,
    /// Zero by writing zeroes.
    WriteZeroes,
    Sync,
}

/// How much the host is asked to zero at once, in bytes: it keeps others out of a file meanwhile.
pub(crate) const ZEROED_AT_ONCE: u64 = 64 << 20;

/// What follows an answer of the host.
pub(crate) enum Progress {
    /// Ask again: [`InFlight::call`] has the next step.
    Again,
    /// There is no space for it now. Nothing else is wrong, so that it may be asked again later.
    NoSpace(io::Error),
    /// The request is complete.
    Done(io::Result<()>),
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    op: Operation,
    step: Step,
    /// Where on the disk the next step starts.
    at: u64,
    /// What is still to be zeroed or discarded of the piece at `at`, in bytes.
    range_left: u64,
    /// How much of that the host is asked for at once.
    chunk: u64,
    /// The chunk was discarded to zero it, and is to be once more.
    repeats: bool,
    /// Another request discards for this one.
    rides: bool,
    /// What is to be zeroed after that.
    ends: [Piece; 2],
    /// What is still to be read or written.
    cursor: Cursor,
    direct: Option<DirectAlignment>,
    bounce: Option<Box<Bounce>>,
    /// What a compare-and-write has still to compare: until then the cursor reads for it.
    compare: Option<Box<Compare>>,
    /// The host asked to be asked again: let it block on a thread of its own.
    may_block: bool,
    /// Its claim on the blocks it changes, where the disk needs one.
    pub(crate) claim: Option<Claim>,
    /// It changes blocks without a claim, because it began before the disk needed one, and is counted as such.
    pub(crate) is_unclaimed: bool,
    /// Since when it is held for want of space.
    pub(crate) held_since: Option<Instant>,
}

impl InFlight {
    /// Takes a request that the host has to carry out.
    pub(crate) fn new(op: Operation, segments: Segments, host: &HostFile) -> Self {
        let (step, at) = match op {
            Operation::Read { at } => (Step::Read, at.0),
            Operation::Write { at, .. } => (Step::Write, at.0),
            Operation::CompareAndWrite { at, .. } => (Step::Read, at.0),
            Operation::Flush => (Step::Sync, 0),
            Operation::Discard { range, .. } if host.is_block_device() => {
                (Step::DiscardBlocks, range.start.0)
            }
            Operation::WriteZeroes { range, unmap: true, .. }
                if host.zeroes_by_discarding().is_some() =>
            {
                (Step::DiscardBlocks, range.start.0)
            }
            Operation::Discard { range, .. }
            | Operation::WriteZeroes { range, unmap: true, .. } => (Step::PunchHole, range.start.0),
            Operation::WriteZeroes { range, unmap: false, .. } => (Step::ZeroRange, range.start.0),
        };
        let (compare, cursor) = if let Operation::CompareAndWrite { .. } = op {
            let (compare, cursor) = Compare::new(segments);
            (Some(Box::new(compare)), cursor)
        } else {
            (None, Cursor::new(segments))
        };
        let mut request = Self {
            op,
            step,
            at,
            range_left: 0,
            chunk: ZEROED_AT_ONCE,
            repeats: false,
            rides: false,
            ends: [Piece::default(); 2],
            cursor,
            direct: host.direct,
            bounce: None,
            compare,
            may_block: false,
            claim: None,
            is_unclaimed: false,
            held_since: None,
        };
        if let Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } = op {
            request.cut(Cut::of(range, op, host));
        }
        request
    }

    /// Starts with the middle of a range, or with its ends where it has none.
    fn cut(&mut self, cut: Cut) {
        self.ends = cut.ends;
        (self.at, self.range_left) = (cut.middle.at, cut.middle.len);
        if cut.middle.len == 0 {
            self.next_end();
        }
    }

    /// Goes on to the next end of a range; `false` if there is none.
    fn next_end(&mut self) -> bool {
        let Some(end) = self.ends.iter_mut().find(|end| end.len > 0) else { return false };
        let Piece { at, len } = std::mem::take(end);
        (self.at, self.range_left) = (at, len);
        self.step = Step::WriteZeroes;
        true
    }

    pub(crate) fn op(&self) -> Operation {
        self.op
    }

    /// The bytes of the disk that it still has to change, if it changes any.
    pub(crate) fn changes(&self) -> Option<Range<u64>> {
        match self.op {
            Operation::Write { .. } => {
                Some(self.at..self.at.saturating_add(total_len(self.cursor.rest()) as u64))
            }
            // Claimed once, before the comparison.
            Operation::CompareAndWrite { .. } => {
                Some(self.at..self.at.saturating_add(total_len(self.cursor.rest()) as u64))
            }
            Operation::Discard { .. } if self.rides => None,
            Operation::Discard { .. } => Some(self.at..self.at.saturating_add(self.range_left)),
            Operation::WriteZeroes { range: ByteRange { start, len }, .. } => {
                Some(start.0..start.0.saturating_add(len))
            }
            Operation::Read { .. } | Operation::Flush => None,
        }
    }

    pub(crate) fn into_segments(self) -> Segments {
        match self.compare {
            Some(compare) => compare.into_segments(),
            None => self.cursor.into_segments(),
        }
    }

    /// Whether there is nothing to ask the host: a discard of parts of blocks only.
    pub(crate) fn is_empty(&self) -> bool {
        match self.step {
            Step::DiscardBlocks | Step::PunchHole | Step::ZeroRange | Step::WriteZeroes => {
                self.range_left == 0
            }
            Step::Read | Step::Write | Step::Sync => false,
        }
    }

    /// Whether the next step discards a chunk of what is only to be discarded, which can wait.
    pub(crate) fn is_trimming(&self) -> bool {
        matches!(self.op, Operation::Discard { .. })
            && matches!(self.step, Step::DiscardBlocks | Step::PunchHole)
    }

    /// What is left of the range.
    pub(crate) fn range_left(&self) -> u64 {
        self.range_left
    }

    /// How much of the range the host is to be asked for at once.
    pub(crate) fn set_chunk(&mut self, chunk: u64) {
        self.chunk = chunk;
    }

    /// From now on another request discards for this one, which changes nothing itself; or none does any more.
    pub(crate) fn ride(&mut self, rides: bool) {
        self.rides = rides;
    }

    /// Discards for others, too: all that is asked for together is this range of whole granules, as durable as any of them
    /// wants it.
    pub(crate) fn discard_instead(
        &mut self,
        range: ByteRange,
        durability: Durability,
        host: &HostFile,
    ) {
        self.op = Operation::Discard { range, durability, more_follows: false };
        self.cut(Cut::of(range, self.op, host));
    }

    /// Whether the next step makes earlier writes durable.
    pub(crate) fn is_syncing(&self) -> bool {
        self.step == Step::Sync
    }

    /// Whether the next step discards or zeroes a range by one call, which may take the host long.
    pub(crate) fn is_ranging(&self) -> bool {
        matches!(self.step, Step::DiscardBlocks | Step::PunchHole | Step::ZeroRange)
    }

    /// Whether the next step zeroes a range by one call.
    pub(crate) fn is_zeroing(&self) -> bool {
        matches!(self.step, Step::PunchHole | Step::ZeroRange)
    }

    /// Forgets what was read of the disk: others may have changed it.
    pub(crate) fn lift(&mut self) {
        if let Some(bounce) = &mut self.bounce {
            bounce.lift();
        }
    }

    /// The next step. The memory it names stays valid until [`InFlight::settle`] or
    /// [`InFlight::into_segments`].
    pub(crate) fn call(&mut self) -> Call {
        let (at, len) = (self.at, self.range_left.min(self.chunk));
        let ask = match self.step {
            Step::Read => self.read(),
            Step::Write => self.write(),
            Step::DiscardBlocks => Ask::Discard { at, len },
            Step::PunchHole => Ask::PunchHole { at, len },
            Step::ZeroRange => Ask::ZeroRange { at, len },
            Step::WriteZeroes => self.write_zeroes(),
            Step::Sync => Ask::Sync,
        };
        Call { ask, may_block: self.may_block }
    }

    fn read(&mut self) -> Ask {
        self.bounce_misfits();
        let (memory, at) = match &mut self.bounce {
            Some(bounce) => bounce.read(self.at, total_len(self.cursor.rest()) as u64),
            None => (self.cursor.memory(), self.at),
        };
        Ask::Read { memory, at }
    }

    fn write(&mut self) -> Ask {
        self.bounce_misfits();
        let durable = self.is_durable_write();
        let Some(bounce) = &mut self.bounce else {
            return Ask::Write { memory: self.cursor.memory(), at: self.at, durable };
        };
        let rest = self.cursor.rest();
        if let Some((memory, at)) = bounce.missing(self.at, total_len(rest) as u64) {
            return Ask::Read { memory, at };
        }
        let (memory, at) = bounce.write(Some(rest));
        Ask::Write { memory, at, durable }
    }

    fn write_zeroes(&mut self) -> Ask {
        let (at, left) = (self.at, self.range_left);
        let durable = false; // A sync follows.
        if let (None, Some(direct)) = (&self.bounce, self.direct)
            && !(at | left).is_multiple_of(direct.offset.into())
        {
            self.bounce = Some(Box::new(Bounce::new(direct, at, left)));
        }
        let Some(bounce) = &mut self.bounce else {
            return Ask::Write { memory: zeroes(left), at, durable };
        };
        if let Some((memory, at)) = bounce.missing(at, left) {
            return Ask::Read { memory, at };
        }
        let (memory, at) = bounce.write(None);
        Ask::Write { memory, at, durable }
    }

    fn bounce_misfits(&mut self) {
        let Some(alignment) = self.direct else { return };
        let rest = self.cursor.rest();
        if self.bounce.is_none() && !fits(rest, self.at, alignment) {
            let bounce = Bounce::new(alignment, self.at, total_len(rest) as u64);
            self.bounce = Some(Box::new(bounce));
        }
    }

    /// Takes the host's answer to the last call: a count of bytes or a negated errno.
    pub(crate) fn settle(&mut self, answer: i32, host: &HostFile) -> Progress {
        let Ok(count) = usize::try_from(answer) else {
            return self.refused(io::Error::from_raw_os_error(answer.wrapping_neg()), host);
        };
        self.may_block = false;
        match self.step {
            Step::Read => {
                let count = match &mut self.bounce {
                    Some(bounce) => bounce.filled(self.cursor.rest(), count),
                    None => count,
                };
                self.cursor.advance(count);
                self.moved(count)
            }
            Step::Write | Step::WriteZeroes => self.written(count),
            Step::DiscardBlocks | Step::PunchHole | Step::ZeroRange => self.chunk_done(host),
            Step::Sync => Progress::Done(Ok(())),
        }
    }

    fn written(&mut self, count: usize) -> Progress {
        let count = match (&mut self.bounce, self.direct) {
            (Some(bounce), _) if bounce.is_reading() => {
                return if bounce.found(count) { Progress::Again } else { end_of_file() };
            }
            (Some(bounce), _) => bounce.written(count),
            // What is left of a block that was written in part is written with all of it.
            (None, Some(direct)) => count - count % direct.offset as usize,
            (None, None) => count,
        };
        match self.step {
            Step::WriteZeroes => self.range_left = self.range_left.saturating_sub(count as u64),
            _ => self.cursor.advance(count),
        }
        self.moved(count)
    }

    /// Bytes have moved, perhaps fewer than asked.
    fn moved(&mut self, count: usize) -> Progress {
        self.at += count as u64;
        if self.is_all_moved() {
            return match self.step {
                Step::WriteZeroes => self.piece_done(),
                Step::Read => self.read_done(),
                _ => Progress::Done(Ok(())),
            };
        }
        match self.step {
            _ if count > 0 => Progress::Again,
            Step::Read => end_of_file(),
            _ => fail(io::ErrorKind::WriteZero, "the host stopped in the middle of a write"),
        }
    }

    /// Everything is read: the end, or what a compare-and-write has been waiting for.
    fn read_done(&mut self) -> Progress {
        let (Some(compare), Operation::CompareAndWrite { at, .. }) = (self.compare.take(), self.op)
        else {
            return Progress::Done(Ok(()));
        };
        match compare.finish() {
            Ok(cursor) => {
                (self.cursor, self.step, self.at, self.bounce) = (cursor, Step::Write, at.0, None);
                Progress::Again
            }
            Err((miscompare, segments)) => {
                self.cursor = Cursor::new(segments);
                Progress::Done(Err(io::Error::other(miscompare)))
            }
        }
    }

    fn is_all_moved(&self) -> bool {
        match self.step {
            Step::WriteZeroes => self.range_left == 0,
            _ => self.cursor.is_spent(),
        }
    }

    /// The host has discarded or zeroed a chunk.
    fn chunk_done(&mut self, host: &HostFile) -> Progress {
        self.repeats = self.zeroes_by_discarding() && !self.repeats;
        if self.repeats {
            return Progress::Again;
        }
        let chunk = self.range_left.min(self.chunk);
        if self.step != Step::ZeroRange {
            host.trimmed.freed(chunk);
        }
        self.at += chunk;
        self.range_left -= chunk;
        if self.range_left > 0 { Progress::Again } else { self.piece_done() }
    }

    /// Whether what is discarded has to read zero. It is discarded twice (ADR 12): the first makes the zeroes; the second makes
    /// them durable with the next flush, and takes from the page cache what was read before the first had ended.
    fn zeroes_by_discarding(&self) -> bool {
        self.step == Step::DiscardBlocks && matches!(self.op, Operation::WriteZeroes { .. })
    }

    /// A piece of the range is zeroed or discarded. With the last, it becomes durable like a write.
    fn piece_done(&mut self) -> Progress {
        if self.next_end() {
            self.bounce = None;
            return Progress::Again;
        }
        match self.op {
            Operation::Discard { durability: Durability::Durable, .. }
            | Operation::WriteZeroes { durability: Durability::Durable, .. } => {
                self.step = Step::Sync;
                Progress::Again
            }
            _ => Progress::Done(Ok(())),
        }
    }

    fn refused(&mut self, error: io::Error, host: &HostFile) -> Progress {
        match error.raw_os_error() {
            Some(libc::EINTR) => return Progress::Again,
            Some(libc::EAGAIN) => {
                self.may_block = true;
                return Progress::Again;
            }
            // A device that cannot say that it would have to block (a ZFS volume) refuses altogether where it must not.
            Some(libc::EOPNOTSUPP) if self.step == Step::DiscardBlocks && !self.may_block => {
                self.may_block = true;
                return Progress::Again;
            }
            // Busy: somebody writes to it through the page cache at this moment.
            Some(code)
                if code == libc::EOPNOTSUPP
                    || (code == libc::EBUSY && self.zeroes_by_discarding()) =>
            {
                if let Some(progress) = self.next_best(host) {
                    return progress;
                }
            }
            _ => {}
        }
        match self.step {
            Step::Read => {}
            Step::Sync => host.sync_failed(&error),
            Step::Write if self.is_durable_write() && !self.is_reading_edge() => {
                host.durable_write_failed(&error);
                if host.is_own_want_of_space(&error) && self.can_be_held() {
                    return Progress::NoSpace(error);
                }
            }
            _ if is_want_of_space(&error) && self.can_be_held() => {
                return Progress::NoSpace(error);
            }
            _ => {}
        }
        Progress::Done(Err(error))
    }

    /// Whether the request may be asked again later, when others have changed its blocks. What was compared must
    /// not have changed.
    fn can_be_held(&self) -> bool {
        !matches!(self.op, Operation::CompareAndWrite { .. })
    }

    /// What to try when the host cannot do a step at all. A discard is advice and may come to
    /// nothing; zeroing may not, and never gives space back unasked.
    fn next_best(&mut self, host: &HostFile) -> Option<Progress> {
        let discard = matches!(self.op, Operation::Discard { .. });
        self.step = match self.step {
            Step::PunchHole if discard => {
                host.note_discard_refusal();
                return Some(Progress::Done(Ok(())));
            }
            Step::DiscardBlocks => Step::PunchHole,
            Step::PunchHole => Step::ZeroRange,
            Step::ZeroRange => Step::WriteZeroes,
            Step::Read | Step::Write | Step::WriteZeroes | Step::Sync => return None,
        };
        Some(Progress::Again)
    }

    fn is_durable_write(&self) -> bool {
        let (Operation::Write { durability, .. } | Operation::CompareAndWrite { durability, .. }) =
            self.op
        else {
            return false;
        };
        durability == Durability::Durable
    }

    /// Whether the last call read a block that is to be written in part.
    fn is_reading_edge(&self) -> bool {
        self.bounce.as_ref().is_some_and(|bounce| bounce.is_reading())
    }
}

/// Whether the host has no space, or none for us.
pub(crate) fn is_want_of_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn end_of_file() -> Progress {
    fail(io::ErrorKind::UnexpectedEof, "the file ends before the disk does")
}

fn fail(kind: io::ErrorKind, text: &'static str) -> Progress {
    Progress::Done(Err(io::Error::new(kind, text)))
}
