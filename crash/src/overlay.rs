//! The writes of a check to its disk, in memory. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::block_index::BLOCK_BYTES;
use crate::cells::SECTOR_BYTES;
use crate::content::BlockBytes;

/// A block that was written, in part or wholly.
pub(crate) struct WrittenBlock {
    pub(crate) bytes: Box<BlockBytes>,
    /// A bit for each sector that was wholly overwritten, the lowest for the first.
    pub(crate) overwritten: u8,
}

/// The blocks that a check wrote.
#[derive(Default)]
pub(crate) struct Overlay {
    written: HashMap<u64, WrittenBlock>,
    /// Ranges of blocks that were zeroed: the end of each by its start. Blocks that were written
    /// since are in `written` as well.
    zeroed: BTreeMap<u64, u64>,
}

/// A block, as the overlay knows it.
pub(crate) enum Overlaid<'o> {
    /// Nothing.
    Nothing,
    /// It was zeroed.
    Zeroed,
    /// It was written.
    Written(&'o WrittenBlock),
}

impl Overlay {
    /// Number of blocks in memory.
    pub(crate) fn blocks(&self) -> usize {
        self.written.len()
    }

    pub(crate) fn block(&self, block: u64) -> Overlaid<'_> {
        match self.written.get(&block) {
            Some(written) => Overlaid::Written(written),
            None if self.is_zeroed(block) => Overlaid::Zeroed,
            None => Overlaid::Nothing,
        }
    }

    /// Replaces a part of a block, from its byte `offset`. `below` has what it had, if it was not
    /// written before.
    pub(crate) fn write(&mut self, block: u64, offset: usize, data: &[u8], below: &BlockBytes) {
        let zeroed = self.is_zeroed(block);
        let written = self.written.entry(block).or_insert_with(|| WrittenBlock {
            bytes: Box::new(*below),
            overwritten: if zeroed { u8::MAX } else { 0 },
        });
        if let Some(part) = written.bytes.get_mut(offset..offset + data.len()) {
            part.copy_from_slice(data);
        }
        written.overwritten |= sector_bits(offset, data.len());
    }

    /// Zeroes whole blocks.
    pub(crate) fn zero(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if end - start < self.written.len() as u64 {
            (start..end).for_each(|block| drop(self.written.remove(&block)));
        } else {
            self.written.retain(|block, _| !(start..end).contains(block));
        }
        let (mut from, mut to) = (start, end);
        while let Some((&at, &until)) =
            self.zeroed.range(..=to).next_back().filter(|(_, until)| **until >= from)
        {
            self.zeroed.remove(&at);
            from = from.min(at);
            to = to.max(until);
        }
        self.zeroed.insert(from, to);
    }

    fn is_zeroed(&self, block: u64) -> bool {
        self.zeroed.range(..=block).next_back().is_some_and(|(_, end)| block < *end)
    }
}

impl WrittenBlock {
    /// Whether a read of `len` bytes from byte `offset` sees what was there before.
    pub(crate) fn shows_below(&self, offset: usize, len: usize) -> bool {
        let sector = SECTOR_BYTES;
        let (first, last) = (offset / sector, (offset + len).div_ceil(sector));
        (first..last).any(|at| at < BLOCK_BYTES / sector && self.overwritten & (1 << at) == 0)
    }
}

/// The sectors that `len` bytes from byte `offset` of a block cover wholly.
fn sector_bits(offset: usize, len: usize) -> u8 {
    let sector = SECTOR_BYTES;
    let (first, end) = (offset.div_ceil(sector), (offset + len) / sector);
    (first..end).fold(0, |bits, at| bits | 1 << at)
}
