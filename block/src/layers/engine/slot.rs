//! A request between the levels, by its tag.

use crate::page::LentPages;
use crate::range_lock::Claim;
use crate::{ByteOffset, ByteRange, DiscardLimits, Durability, Operation, Segments};

use super::super::map::touched;
use super::super::map_sync::Ticket;
use super::super::unit::{BLOCK, BLOCK_BYTES};

/// A tag: what its request waits for.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) work: SlotWork,
    /// The data of a request that is not forwarded at once.
    pub(super) segments: Segments,
    /// The next request whose write is made together with this one's.
    pub(super) rider: Option<u16>,
    /// The request of the level for this one and its riders is about to end: it was cancelled.
    pub(super) is_ending: bool,
    /// The work ends when the request of the level is complete.
    pub(super) is_canceled: bool,
}

impl Slot {
    /// Whether its request is a change of blocks that the top does not answer for.
    pub(super) fn is_change(&self) -> bool {
        matches!(self.work, SlotWork::Change(_))
    }
}

/// The work that is left when the tag's request of a level completes.
#[derive(Debug, Default)]
pub(super) enum SlotWork {
    /// No more: the request was forwarded, or the tag is free.
    #[default]
    Forwarded,
    /// A read of several levels.
    Read(ReadCursor),
    /// A change of blocks that the top does not answer for.
    Change(Change),
    /// A write of such blocks that is made together with that of another request.
    Rider {
        /// The tag of the other request.
        leader: u16,
        /// Where on the disk.
        at: ByteOffset,
    },
    /// The map has to be durable; bits of these blocks were set before.
    Durable {
        /// The first block.
        first: u64,
        /// The block after the last one.
        end: u64,
    },
    /// A write-back of the map.
    Sync(Ticket),
    /// The end of a hold of the disk, to be started.
    Held(Operation),
}

/// A read that is done piece by piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadCursor {
    /// The highest level that may answer.
    pub(super) from: usize,
    /// First byte.
    pub(super) start: u64,
    /// The next byte that is not read or being read.
    pub(super) at: u64,
    /// The byte after the last one.
    pub(super) end: u64,
}

/// A change of blocks that the top does not answer for.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) op: Operation,
    /// Its bytes of the disk.
    pub(super) range: ByteRange,
    /// A claim on its blocks; `None` before it is made, and once it is released.
    pub(super) claim: Option<Claim>,
    /// It has copied the blocks before this one that it had to copy.
    pub(super) copied: u64,
    pub(super) stage: ChangeStage,
}

/// How far a change has come.
#[derive(Debug)]
pub(super) enum ChangeStage {
    /// Waits for its claim.
    Claiming,
    /// A block is copied to the top.
    Copying(Box<CopyUp>),
    /// The top makes the change.
    Changing,
    /// It is made, and waits for the unflushed map to have its blocks.
    Noting(Ticket),
}

/// A block that is copied to the top.
#[derive(Debug)]
pub(super) struct CopyUp {
    pub(super) block: u64,
    pub(super) pages: LentPages,
    pub(super) cursor: ReadCursor,
    /// It was read.
    pub(super) is_written: bool,
}

impl CopyUp {
    /// A copy of a block of a disk of `capacity` bytes.
    pub(super) fn new(block: u64, capacity: u64) -> Self {
        let (start, end) = (block * BLOCK, (block * BLOCK + BLOCK).min(capacity));
        let cursor = ReadCursor { from: 1, start, at: start, end };
        Self { block, pages: LentPages::zeroed(BLOCK_BYTES), cursor, is_written: false }
    }
}

/// First writes of blocks one behind the other that are to be made together.
#[derive(Debug)]
pub(super) struct MergedWrites {
    /// The tag of the first one.
    pub(super) leader: u16,
    /// The tag of the last one.
    pub(super) last: u16,
    /// First byte.
    pub(super) start: u64,
    /// The byte after the last one.
    pub(super) end: u64,
}

impl MergedWrites {
    const MAX_BYTES: u64 = 256 << 10;

    /// Whether a write of this range continues them.
    pub(super) fn takes(&self, range: ByteRange) -> bool {
        let ByteRange { start: ByteOffset(start), len } = range;
        self.end == start && start + len - self.start <= Self::MAX_BYTES
    }
}

impl Change {
    /// Whether a change of this range may be made together with those that continue it: a write of
    /// whole blocks.
    pub(super) fn may_be_merged(op: Operation, range: ByteRange) -> bool {
        let is_write = matches!(op, Operation::Write { durability: Durability::Volatile, .. });
        let is_whole = (range.start.0 | range.len).is_multiple_of(BLOCK);
        is_write && is_whole && range.len < MergedWrites::MAX_BYTES
    }

    /// A change without a claim.
    pub(super) fn new(op: Operation, range: ByteRange) -> Self {
        Self { op, range, claim: None, copied: 0, stage: ChangeStage::Claiming }
    }

    /// The blocks that it touches, as the first one and the end.
    pub(super) fn touched(&self) -> (u64, u64) {
        touched(self.range)
    }

    /// The blocks that the top answers for when it is done, as the first one and the end: those
    /// that it touches; of a discard its whole granules, as the host deallocates no others.
    pub(super) fn answered(&self, granules: Option<DiscardLimits>) -> (u64, u64) {
        if !matches!(self.op, Operation::Discard { .. }) {
            return self.touched();
        }
        let ByteRange { start: ByteOffset(start), len } = self.range;
        let Some(granules) = granules else { return (0, 0) };
        let (unit, alignment) = (granules.granularity.into(), granules.alignment.into());
        let up = |at: u64| at.saturating_sub(alignment).div_ceil(unit) * unit + alignment;
        let down = |at: u64| at.checked_sub(alignment).map(|at| at / unit * unit + alignment);
        let first = up(start).div_ceil(BLOCK);
        let end = down(start + len).map_or(0, |end| end / BLOCK);
        (first, end.max(first))
    }

    /// The next block of which the change needs the present content, among those that it has not
    /// copied, and that `is_set` says the top does not answer for.
    pub(super) fn next_copy(&self, is_set: impl Fn(u64) -> bool) -> Option<u64> {
        let (first, end) = self.touched();
        let is_set = |block: u64| block < self.copied || is_set(block);
        let ByteRange { start: ByteOffset(start), len } = self.range;
        match self.op {
            Operation::CompareAndWrite { .. } => (first..end).find(|block| !is_set(*block)),
            Operation::Write { .. } | Operation::WriteZeroes { .. } => {
                let head = (!start.is_multiple_of(BLOCK)).then_some(first);
                let tail = (!(start + len).is_multiple_of(BLOCK)).then_some(end - 1);
                head.into_iter().chain(tail).find(|block| !is_set(*block))
            }
            Operation::Read { .. } | Operation::Flush | Operation::Discard { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(op: fn(ByteRange) -> Operation, start: u64, len: u64) -> Change {
        let range = ByteRange { start: ByteOffset(start), len };
        Change::new(op(range), range)
    }

    fn write(range: ByteRange) -> Operation {
        Operation::Write { at: range.start, durability: Durability::Volatile }
    }

    fn discard(range: ByteRange) -> Operation {
        Operation::Discard { range, durability: Durability::Volatile, more_follows: false }
    }

    fn compare(range: ByteRange) -> Operation {
        Operation::CompareAndWrite { at: range.start, durability: Durability::Volatile }
    }

    #[test]
    fn partial_blocks_are_copied() {
        let copies = |mut change: Change| {
            let mut copied = Vec::new();
            while let Some(block) = change.next_copy(|block| block == 7) {
                copied.push(block);
                change.copied = block + 1;
            }
            copied
        };
        assert_eq!(copies(change(write, 4096, 8192)), []);
        assert_eq!(copies(change(write, 512, 512)), [0]);
        assert_eq!(copies(change(write, 4096, 512)), [1]);
        assert_eq!(copies(change(write, 512, 8192)), [0, 2]);
        assert_eq!(copies(change(write, 7 * 4096 + 512, 4096)), [8]);
        assert_eq!(copies(change(compare, 512, 8192)), [0, 1, 2]);
        assert_eq!(copies(change(discard, 512, 8192)), []);
    }

    #[test]
    fn a_discard_answers_for_whole_granules() {
        let granules = |granularity, alignment| {
            Some(DiscardLimits { granularity, alignment, reads_zero: true })
        };
        assert_eq!(change(write, 512, 8192).answered(None), (0, 3));
        assert_eq!(change(discard, 4096, 8192).answered(None), (0, 0));
        assert_eq!(change(discard, 512, 8192).answered(granules(4096, 0)), (1, 2));
        assert_eq!(change(discard, 512, 3000).answered(granules(4096, 0)), (1, 1));
        assert_eq!(change(discard, 4096, 65536).answered(granules(16384, 0)), (4, 16));
        assert_eq!(change(discard, 4096, 65536).answered(granules(16384, 8192)), (2, 14));
        assert_eq!(change(discard, 0, 4096).answered(granules(16384, 8192)), (2, 2));
    }
}
