//! A command at work on the medium: which request comes next, and how it ends. Pure, but for the unit's state.
//!
//! The transport carries out one [`Step`] at a time and hands its result to [`Job::next`]. A command that moves
//! the initiator's data as it is has one step and owns no memory; the others have as many as it takes.

use std::io;
use std::vec;

use ::block::{ByteOffset, ByteRange, Durability, Miscompare, Operation, Segment};

use super::DataOut;
use super::scratch::Scratch;
use super::sense::Sense;
use super::unit::LogicalUnit;

/// One request for the unit's engine.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is asked.
    pub op: Operation,
    /// Where its data is.
    pub data: Data,
}

/// Where the data of a step is.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    /// It has none.
    None,
    /// This many bytes from the start of the initiator's buffer, data-in for a read and data-out for others.
    Initiator(u64),
    /// In memory of the job's own, which stays until the step's result was handed back.
    Own(Segment),
}

/// What follows a step.
#[derive(Debug)]
pub enum Next {
    /// Another step.
    Step(Step),
    /// The end: GOOD or CHECK CONDITION.
    Done(Result<(), Sense>),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Job {
    step: Step,
    work: Work,
    /// Bytes of the initiator's buffers that a success uses: data-out, data-in.
    taken: u64,
    given: u64,
}

/// What is left to do after the current step.
#[derive(Debug)]
enum Work {
    Nothing,
    /// The data was written to a write cache that may be switched off meanwhile: then it is flushed.
    KeepPromise,
    /// The write cache was switched off: what is in it is being flushed.
    CacheOff,
    /// What is in the write cache is being flushed, and then the unit stops.
    Stop,
    Read(ByteRange),
    Unmap {
        ranges: vec::IntoIter<ByteRange>,
        durability: Durability,
    },
    Same(Box<Same>),
    Verify(Box<Verify>),
}

/// A block to be written again and again.
#[derive(Debug)]
struct Same {
    range: ByteRange,
    durability: Durability,
    /// As many copies as fit.
    copies: Scratch,
}

/// Blocks to be read, and compared with something.
#[derive(Debug)]
struct Verify {
    range: ByteRange,
    done: u64,
    against: Against,
    scratch: Scratch,
}

/// What the medium is compared with.
#[derive(Debug)]
pub(super) enum Against {
    /// That it can be read is enough.
    Nothing,
    /// The data-out buffer.
    DataOut,
    /// This block, each time.
    Block(Vec<u8>),
}

impl Job {
    fn new(op: Operation, data: Data, work: Work) -> Self {
        Self { step: Step { op, data }, work, taken: 0, given: 0 }
    }

    /// Reads a range into the data-in buffer.
    pub(super) fn read(range: ByteRange) -> Self {
        let op = Operation::Read { at: range.start };
        let job = Self::new(op, Data::Initiator(range.len), Work::Nothing);
        Self { given: range.len, ..job }
    }

    /// Reads a range from the medium rather than from a cache.
    pub(super) fn read_after_flush(range: ByteRange) -> Self {
        let job = Self::new(Operation::Flush, Data::None, Work::Read(range));
        Self { given: range.len, ..job }
    }

    /// Writes the data-out buffer to a range.
    pub(super) fn write(range: ByteRange, durability: Durability) -> Self {
        let op = Operation::Write { at: range.start, durability };
        let job = Self::new(op, Data::Initiator(range.len), promise(durability));
        Self { taken: range.len, ..job }
    }

    /// Compares the first half of the data-out buffer with the range and writes the other half if they are equal.
    pub(super) fn compare_and_write(range: ByteRange, durability: Durability) -> Self {
        let op = Operation::CompareAndWrite { at: range.start, durability };
        let taken = range.len * 2;
        let job = Self::new(op, Data::Initiator(taken), promise(durability));
        Self { taken, ..job }
    }

    /// Makes all completed writes durable.
    pub(super) fn flush() -> Self {
        Self::new(Operation::Flush, Data::None, Work::Nothing)
    }

    /// The write cache has been switched off by a parameter list of `taken` bytes.
    pub(super) fn cache_off(taken: u64) -> Self {
        Self { taken, ..Self::new(Operation::Flush, Data::None, Work::CacheOff) }
    }

    /// Stops the unit when its cache is written.
    pub(super) fn stop() -> Self {
        Self::new(Operation::Flush, Data::None, Work::Stop)
    }

    /// Zeroes a range, after `taken` bytes of data-out said so.
    pub(super) fn zero(range: ByteRange, unmap: bool, durability: Durability, taken: u64) -> Self {
        let op = Operation::WriteZeroes { range, unmap, durability };
        Self { taken, ..Self::new(op, Data::None, promise(durability)) }
    }

    /// Discards ranges; `None` if there is none.
    pub(super) fn unmap(
        ranges: Vec<ByteRange>,
        durability: Durability,
        taken: u64,
    ) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let op = discard(&mut ranges, durability)?;
        let work = Work::Unmap { ranges, durability };
        Some(Self { taken, ..Self::new(op, Data::None, work) })
    }

    /// Writes `block` over and over to a range that is not empty.
    pub(super) fn same(range: ByteRange, block: &[u8], durability: Durability) -> Self {
        let mut copies = Scratch::new(range.len);
        for place in copies.bytes_mut().chunks_exact_mut(block.len().max(1)) {
            place.copy_from_slice(block);
        }
        let mut same = Box::new(Same { range, durability, copies });
        let step = same.step();
        Self { step, work: Work::Same(same), taken: block.len() as u64, given: 0 }
    }

    /// Reads a range that is not empty from the medium and compares it; with `write`, after writing the data-out
    /// buffer there.
    pub(super) fn verify(range: ByteRange, against: Against, write: bool) -> Self {
        let taken = match &against {
            Against::Block(block) => block.len() as u64,
            Against::Nothing if !write => 0,
            Against::Nothing | Against::DataOut => range.len,
        };
        let scratch = Scratch::new(range.len);
        let work = Work::Verify(Box::new(Verify { range, done: 0, against, scratch }));
        let job = if write {
            let op = Operation::Write { at: range.start, durability: Durability::Durable };
            Self::new(op, Data::Initiator(range.len), work)
        } else {
            Self::new(Operation::Flush, Data::None, work)
        };
        Self { taken, ..job }
    }

    /// The step to carry out now.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Bytes of the data-out buffer that a success uses.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that a success leaves in the data-in buffer.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Whether a later step needs the initiator's buffers again.
    #[must_use]
    pub fn keeps_buffers(&self) -> bool {
        match &self.work {
            Work::Read(_) => true,
            Work::Verify(verify) => matches!(verify.against, Against::DataOut),
            _ => false,
        }
    }

    /// Takes the result of the step and says what follows.
    pub fn next(
        &mut self,
        unit: &LogicalUnit,
        result: io::Result<()>,
        out: &(dyn DataOut + '_),
    ) -> Next {
        if let Err(error) = result {
            return Next::Done(Err(self.failed(unit, &error)));
        }
        match self.following(unit, out) {
            Ok(Some(step)) => {
                self.step = step;
                Next::Step(step)
            }
            Ok(None) => Next::Done(Ok(())),
            Err(sense) => Next::Done(Err(sense)),
        }
    }

    /// Whether its step may be cancelled when it is aborted: not where the unit has changed already, and follows what comes
    /// of the step.
    #[must_use]
    pub fn may_be_cancelled(&self) -> bool {
        !matches!(self.work, Work::CacheOff)
    }

    /// The step has failed. What was to follow from it is undone.
    pub fn step_failed(&self, unit: &LogicalUnit) {
        if matches!(self.work, Work::CacheOff) {
            unit.write_cache().switch_on();
        }
    }

    fn failed(&self, unit: &LogicalUnit, error: &io::Error) -> Sense {
        self.step_failed(unit);
        let miscompare = error.get_ref().and_then(|error| error.downcast_ref::<Miscompare>());
        miscompare.map_or_else(
            || Sense::of(self.step.op, error),
            |miscompare| Sense::miscompare(miscompare.offset),
        )
    }

    fn following(
        &mut self,
        unit: &LogicalUnit,
        out: &(dyn DataOut + '_),
    ) -> Result<Option<Step>, Sense> {
        Ok(match &mut self.work {
            Work::Nothing | Work::CacheOff => None,
            Work::Stop => {
                unit.set_stopped(true);
                None
            }
            Work::KeepPromise => {
                self.work = Work::Nothing;
                kept_promise(unit)
            }
            Work::Read(range) => {
                let range = *range;
                self.work = Work::Nothing;
                let op = Operation::Read { at: range.start };
                Some(Step { op, data: Data::Initiator(range.len) })
            }
            Work::Unmap { ranges, durability } => {
                let durability = *durability;
                if let Some(op) = discard(ranges, durability) {
                    return Ok(Some(Step { op, data: Data::None }));
                }
                self.work = Work::Nothing;
                if durability == Durability::Volatile { kept_promise(unit) } else { None }
            }
            Work::Same(same) => {
                if same.wrote() {
                    return Ok(Some(same.step()));
                }
                let volatile = same.durability == Durability::Volatile;
                self.work = Work::Nothing;
                if volatile { kept_promise(unit) } else { None }
            }
            Work::Verify(verify) => {
                if matches!(self.step.op, Operation::Read { .. }) {
                    verify.compare(out)?;
                }
                verify.step()
            }
        })
    }
}

/// Discards the next range. Neighbours within one command were joined before; for those of other commands the last one
/// waits, so that there is one wait for all.
fn discard(ranges: &mut vec::IntoIter<ByteRange>, durability: Durability) -> Option<Operation> {
    let range = ranges.next()?;
    Some(Operation::Discard { range, durability, more_follows: !ranges.as_slice().is_empty() })
}

/// What is left to do after data was written with this durability.
fn promise(durability: Durability) -> Work {
    match durability {
        Durability::Volatile => Work::KeepPromise,
        Durability::Durable => Work::Nothing,
    }
}

/// A write that began while the write cache was on, and ends after it was switched off, must not stay volatile:
/// the flush of the switch did not cover it.
fn kept_promise(unit: &LogicalUnit) -> Option<Step> {
    let volatile = unit.write_cache().durability() == Durability::Volatile;
    (!volatile).then_some(Step { op: Operation::Flush, data: Data::None })
}

impl Same {
    fn chunk(&self) -> u64 {
        // Copies fill whole blocks, of which the range is made.
        self.copies.len().min(self.range.len)
    }

    fn step(&mut self) -> Step {
        let op = Operation::Write { at: self.range.start, durability: self.durability };
        let chunk = self.chunk();
        Step { op, data: Data::Own(self.copies.segment(chunk)) }
    }

    /// A step is done; whether there is another.
    fn wrote(&mut self) -> bool {
        let chunk = self.chunk();
        self.range.start = ByteOffset(self.range.start.0 + chunk);
        self.range.len -= chunk;
        self.range.len > 0
    }
}

impl Verify {
    fn chunk(&self) -> u64 {
        (self.range.len - self.done).min(self.scratch.len())
    }

    /// The next read; `None` at the end.
    fn step(&mut self) -> Option<Step> {
        let chunk = self.chunk();
        let op = Operation::Read { at: ByteOffset(self.range.start.0 + self.done) };
        (chunk > 0).then(|| Step { op, data: Data::Own(self.scratch.segment(chunk)) })
    }

    /// Compares what was read.
    fn compare(&mut self, out: &(dyn DataOut + '_)) -> Result<(), Sense> {
        let (at, chunk) = (self.done, self.chunk());
        self.done += chunk;
        let len = usize::try_from(chunk).unwrap_or(0);
        let found = self.scratch.bytes().get(..len).unwrap_or_default();
        match &self.against {
            Against::Nothing => Ok(()),
            Against::DataOut => {
                let mut expected = vec![0; len];
                // The buffer was seen to lie in the initiator's memory when the command came.
                if !out.read(at, &mut expected) {
                    return Err(Sense::UNRECOVERED_READ_ERROR);
                }
                same(found, &expected).map_err(|offset| Sense::miscompare(at + offset))
            }
            Against::Block(block) => found
                .chunks(block.len().max(1))
                .try_for_each(|found| same(found, block))
                .map_err(Sense::miscompare),
        }
    }
}

/// The offset of the first byte that differs.
fn same(found: &[u8], expected: &[u8]) -> Result<(), u64> {
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    differs.map_or(Ok(()), |offset| Err(offset as u64))
}
