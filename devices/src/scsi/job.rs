//! A command on the medium: its operations in order, and its end. Pure, except for the unit's
//! state.
//!
//! The transport executes one [`Step`] at a time and passes its result to [`Job::next`]. A command
//! that moves the initiator's data unchanged has one step and owns no memory; others have several.

use std::io;
use std::vec;

use ::block::{ByteOffset, ByteRange, Durability, Miscompare, Operation, Segment};

use super::data_out::DataOut;
use super::scratch::Scratch;
use super::sense::Sense;
use super::unit::LogicalUnit;

/// One operation for the unit's engine.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The operation.
    pub op: Operation,
    /// Its data.
    pub data: Data,
}

const FLUSH: Step = Step { op: Operation::Flush, data: Data::None };

/// The data of a step.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    /// None.
    None,
    /// This number of bytes from the start of the initiator's buffer: data-in for a read, data-out
    /// for other operations.
    Initiator(u64),
    /// Memory of the job, valid until the result of the step is passed to [`Job::next`].
    Own(Segment),
}

/// The result of [`Job::next`].
#[derive(Debug)]
pub enum Next {
    /// Another step.
    Step(Step),
    /// The end: GOOD or CHECK CONDITION.
    Done(Result<(), Sense>),
}

/// A command on the medium.
#[derive(Debug)]
pub struct Job {
    /// The current step.
    step: Step,
    remaining: Remaining,
    /// Bytes of the data-out buffer that a success uses.
    taken: u64,
    /// Bytes of the data-in buffer that a success fills.
    given: u64,
}

/// The work after the current step.
#[derive(Debug)]
enum Remaining {
    Nothing,
    /// A flush, if the write cache was switched off during a volatile write.
    FlushIfCacheOff,
    /// The switch of the write cache to off, whose flush is the current step.
    CacheOff,
    /// The stop of the unit after the flush.
    Stop,
    Flush,
    Unmap {
        ranges: vec::IntoIter<ByteRange>,
        durability: Durability,
    },
    WriteSame(Box<WriteSame>),
    Verify(Box<Verify>),
}

/// A block that is written repeatedly.
#[derive(Debug)]
struct WriteSame {
    /// The rest of the range.
    range: ByteRange,
    durability: Durability,
    /// As many copies of the block as fit.
    copies: Scratch,
}

/// Blocks that are read and compared.
#[derive(Debug)]
struct Verify {
    range: ByteRange,
    /// Bytes compared.
    done: u64,
    expected: Expected,
    scratch: Scratch,
}

/// The data that the medium is compared with.
#[derive(Debug)]
pub(super) enum Expected {
    /// None: the blocks only have to be readable.
    Nothing,
    /// The data-out buffer.
    DataOut,
    /// This block, repeated.
    Block(Vec<u8>),
}

impl Job {
    fn new(op: Operation, data: Data, remaining: Remaining) -> Self {
        Self { step: Step { op, data }, remaining, taken: 0, given: 0 }
    }

    /// Reads a range into the data-in buffer.
    pub(super) fn read(range: ByteRange) -> Self {
        let op = Operation::Read { at: range.start };
        let job = Self::new(op, Data::Initiator(range.len), Remaining::Nothing);
        Self { given: range.len, ..job }
    }

    /// Reads a range as with FUA: the data that it returns is on the medium (SBC-3 §4.16.3). The
    /// flush is last: a read after it might return the data of a write that is in flight, which a
    /// power cut can still undo. For the same reason there is one without a write cache.
    pub(super) fn read_and_flush(range: ByteRange) -> Self {
        Self { remaining: Remaining::Flush, ..Self::read(range) }
    }

    /// Writes the data-out buffer to a range.
    pub(super) fn write(range: ByteRange, durability: Durability) -> Self {
        let op = Operation::Write { at: range.start, durability };
        let job = Self::new(op, Data::Initiator(range.len), after_write(durability));
        Self { taken: range.len, ..job }
    }

    /// Compares the first half of the data-out buffer with a range and writes the second half if
    /// they are equal.
    pub(super) fn compare_and_write(range: ByteRange, durability: Durability) -> Self {
        let op = Operation::CompareAndWrite { at: range.start, durability };
        let taken = range.len * 2;
        let job = Self::new(op, Data::Initiator(taken), after_write(durability));
        Self { taken, ..job }
    }

    /// Makes all completed writes durable.
    pub(super) fn flush() -> Self {
        Self::new(Operation::Flush, Data::None, Remaining::Nothing)
    }

    /// Flushes the write cache, which a parameter list of `taken` bytes switched off.
    pub(super) fn cache_off(taken: u64) -> Self {
        Self { taken, ..Self::new(Operation::Flush, Data::None, Remaining::CacheOff) }
    }

    /// Stops the unit after a flush.
    pub(super) fn stop() -> Self {
        Self::new(Operation::Flush, Data::None, Remaining::Stop)
    }

    /// Zeroes a range. The command used `taken` bytes of data-out.
    pub(super) fn zero(range: ByteRange, unmap: bool, durability: Durability, taken: u64) -> Self {
        let op = Operation::WriteZeroes { range, unmap, durability };
        Self { taken, ..Self::new(op, Data::None, after_write(durability)) }
    }

    /// Discards ranges; `None` if there is none.
    pub(super) fn unmap(
        ranges: Vec<ByteRange>,
        durability: Durability,
        taken: u64,
    ) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let op = discard_next(&mut ranges, durability)?;
        let remaining = Remaining::Unmap { ranges, durability };
        Some(Self { taken, ..Self::new(op, Data::None, remaining) })
    }

    /// Writes `block` repeatedly to a range that is not empty.
    pub(super) fn write_same(range: ByteRange, block: &[u8], durability: Durability) -> Self {
        let mut copies = Scratch::new(range.len);
        for copy in copies.bytes_mut().chunks_exact_mut(block.len().max(1)) {
            copy.copy_from_slice(block);
        }
        let mut write_same = Box::new(WriteSame { range, durability, copies });
        let (step, taken) = (write_same.step(), block.len() as u64);
        Self { step, remaining: Remaining::WriteSame(write_same), taken, given: 0 }
    }

    /// Reads a range that is not empty from the medium and compares it; with `write`, after writing
    /// the data-out buffer there.
    pub(super) fn verify(range: ByteRange, expected: Expected, write: bool) -> Self {
        let taken = match &expected {
            Expected::Block(block) => block.len() as u64,
            Expected::Nothing if !write => 0,
            Expected::Nothing | Expected::DataOut => range.len,
        };
        let scratch = Scratch::new(range.len);
        let verify = Box::new(Verify { range, done: 0, expected, scratch });
        let (op, data) = if write {
            let op = Operation::Write { at: range.start, durability: Durability::Durable };
            (op, Data::Initiator(range.len))
        } else {
            (Operation::Flush, Data::None)
        };
        Self { taken, ..Self::new(op, data, Remaining::Verify(verify)) }
    }

    /// The current step.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Bytes of the data-out buffer that a success uses.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes of the data-in buffer that a success fills.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Whether a later step uses the initiator's buffers.
    #[must_use]
    pub fn keeps_buffers(&self) -> bool {
        matches!(&self.remaining, Remaining::Verify(verify)
            if matches!(verify.expected, Expected::DataOut))
    }

    /// Takes the result of the current step and returns the next one, or the end.
    pub fn next(
        &mut self,
        unit: &LogicalUnit,
        result: io::Result<()>,
        out: &(dyn DataOut + '_),
    ) -> Next {
        if let Err(error) = result {
            return Next::Done(Err(self.fail(unit, &error)));
        }
        match self.advance(unit, out) {
            Ok(Some(step)) => {
                self.step = step;
                Next::Step(step)
            }
            Ok(None) => Next::Done(Ok(())),
            Err(sense) => Next::Done(Err(sense)),
        }
    }

    /// Whether an abort may cancel the current step. `false` if the unit has changed already and
    /// depends on the result of the step.
    #[must_use]
    pub fn may_be_cancelled(&self) -> bool {
        !matches!(self.remaining, Remaining::CacheOff)
    }

    /// Completes a change of the unit that depends on the result of the current step, or reverts it
    /// if the step failed. Only for a command that ends without [`Self::next`].
    pub fn end_step(&self, unit: &LogicalUnit, succeeded: bool) {
        if matches!(self.remaining, Remaining::CacheOff) {
            unit.write_cache().end_switch_off(succeeded);
        }
    }

    fn fail(&self, unit: &LogicalUnit, error: &io::Error) -> Sense {
        self.end_step(unit, false);
        let miscompare = error.get_ref().and_then(|error| error.downcast_ref::<Miscompare>());
        miscompare.map_or_else(
            || Sense::of(self.step.op, error),
            |miscompare| Sense::miscompare(miscompare.offset),
        )
    }

    /// The step after the current one, which succeeded.
    fn advance(
        &mut self,
        unit: &LogicalUnit,
        out: &(dyn DataOut + '_),
    ) -> Result<Option<Step>, Sense> {
        let written = match &mut self.remaining {
            Remaining::Nothing => return Ok(None),
            Remaining::CacheOff => {
                unit.write_cache().end_switch_off(true);
                return Ok(None);
            }
            Remaining::Stop => {
                unit.set_stopped(true);
                return Ok(None);
            }
            Remaining::Flush => {
                self.remaining = Remaining::Nothing;
                return Ok(Some(FLUSH));
            }
            Remaining::Verify(verify) => {
                if matches!(self.step.op, Operation::Read { .. }) {
                    verify.compare(out)?;
                }
                return Ok(verify.step());
            }
            Remaining::FlushIfCacheOff => Durability::Volatile,
            Remaining::Unmap { ranges, durability } => {
                if let Some(op) = discard_next(ranges, *durability) {
                    return Ok(Some(Step { op, data: Data::None }));
                }
                *durability
            }
            Remaining::WriteSame(write_same) => {
                if write_same.advance() {
                    return Ok(Some(write_same.step()));
                }
                write_same.durability
            }
        };
        self.remaining = Remaining::Nothing;
        Ok(flush_if_cache_off(unit, written))
    }
}

/// Discards the next range. The ranges of one command were merged before; the engine may delay the
/// last one to merge it with those of other commands.
fn discard_next(
    ranges: &mut vec::IntoIter<ByteRange>,
    durability: Durability,
) -> Option<Operation> {
    let range = ranges.next()?;
    Some(Operation::Discard { range, durability, more_follows: !ranges.as_slice().is_empty() })
}

/// The work after a write.
fn after_write(durability: Durability) -> Remaining {
    match durability {
        Durability::Volatile => Remaining::FlushIfCacheOff,
        Durability::Durable => Remaining::Nothing,
    }
}

/// Flushes a volatile write during which the write cache was switched off: the flush of the switch
/// did not cover it.
fn flush_if_cache_off(unit: &LogicalUnit, written: Durability) -> Option<Step> {
    let needs_flush =
        written == Durability::Volatile && unit.write_cache().durability() == Durability::Durable;
    needs_flush.then_some(FLUSH)
}

impl WriteSame {
    /// Length of the current write, a multiple of the block.
    fn chunk(&self) -> u64 {
        self.copies.len().min(self.range.len)
    }

    fn step(&mut self) -> Step {
        let op = Operation::Write { at: self.range.start, durability: self.durability };
        let chunk = self.chunk();
        Step { op, data: Data::Own(self.copies.segment(chunk)) }
    }

    /// Completes the current write. Returns whether the range has more blocks.
    fn advance(&mut self) -> bool {
        let chunk = self.chunk();
        self.range.start = ByteOffset(self.range.start.0 + chunk);
        self.range.len -= chunk;
        self.range.len > 0
    }
}

impl Verify {
    /// Length of the current read.
    fn chunk(&self) -> u64 {
        (self.range.len - self.done).min(self.scratch.len())
    }

    /// The next read; `None` at the end of the range.
    fn step(&mut self) -> Option<Step> {
        let chunk = self.chunk();
        let op = Operation::Read { at: ByteOffset(self.range.start.0 + self.done) };
        (chunk > 0).then(|| Step { op, data: Data::Own(self.scratch.segment(chunk)) })
    }

    /// Compares the data of the current read.
    fn compare(&mut self, out: &(dyn DataOut + '_)) -> Result<(), Sense> {
        let (at, chunk) = (self.done, self.chunk());
        self.done += chunk;
        let len = usize::try_from(chunk).unwrap_or(0);
        let found = self.scratch.bytes().get(..len).unwrap_or_default();
        match &self.expected {
            Expected::Nothing => Ok(()),
            Expected::DataOut => {
                let mut expected = vec![0; len];
                // Succeeds: the transport checked the buffer when the command arrived.
                if !out.read(at, &mut expected) {
                    return Err(Sense::UNRECOVERED_READ_ERROR);
                }
                check_equal(found, &expected).map_err(|offset| Sense::miscompare(at + offset))
            }
            Expected::Block(block) => found
                .chunks(block.len().max(1))
                .try_for_each(|found| check_equal(found, block))
                .map_err(Sense::miscompare),
        }
    }
}

/// # Errors
///
/// The offset of the first byte that differs.
fn check_equal(found: &[u8], expected: &[u8]) -> Result<(), u64> {
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    differs.map_or(Ok(()), |offset| Err(offset as u64))
}
