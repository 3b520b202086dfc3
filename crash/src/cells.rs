//! The content of each sector of a block after a power cut: of which write, or of the base. Pure.
//!
//! The rules are those of docs/record-log.md, "What a power cut can leave".

use crate::block_index::{BLOCK, BLOCK_BYTES, BlockIndex};
use crate::history::History;
use crate::losses::Losses;
use crate::name::StateName;

/// Bytes of a sector, the smallest part of a write that is on the disk or not.
pub(crate) const SECTOR: u64 = SECTOR_BYTES as u64;
/// The same, as a length in memory.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub(crate) const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

/// The writers of the sectors of a block: the number of a write, or `None` for the base.
pub(crate) type BlockValue = [Option<u32>; SECTORS];

/// The sectors of a block after a power cut.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cells {
    /// Their writers.
    pub(crate) value: BlockValue,
    /// For each sector whose value may be lost: that value.
    pub(crate) losable: BlockValue,
}

/// A sector while the writes that touch it are visited, the last to complete first.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Writes that completed before this number of completions are overwritten.
    overwritten_below: u64,
    /// The last write that is durable.
    durable: Option<u32>,
    /// The last write that is not lost.
    value: Option<u32>,
    /// The highest and the lowest write that may be visible.
    highest: Option<u32>,
    lowest: Option<u32>,
}

impl Cell {
    /// Whether no earlier write than `number` changes anything.
    fn is_settled(&self, number: u64) -> bool {
        number < self.overwritten_below || (self.value.is_some() && self.lowest != self.highest)
    }

    fn visit(&mut self, number: u32, issued_after: u64, is_durable: bool, is_lost: bool) {
        if u64::from(number) < self.overwritten_below {
            return;
        }
        self.highest.get_or_insert(number);
        self.lowest = Some(number);
        if self.value.is_none() && !is_lost {
            self.value = Some(number);
        }
        if is_durable {
            self.durable.get_or_insert(number);
            self.overwritten_below = self.overwritten_below.max(issued_after);
        }
    }

    /// The value, and whether it may be lost: for the base unless a write is durable, else for
    /// another write. If all are lost, a durable one is there nevertheless.
    fn settle(&self) -> (Option<u32>, bool) {
        let may_be_lost = self.durable.is_none() || self.lowest != self.highest;
        (self.value.or(self.durable), self.value.is_some() && may_be_lost)
    }
}

struct Visit<'h> {
    history: &'h History,
    index: &'h BlockIndex,
    state: &'h StateName,
}

impl Visit<'_> {
    /// Visits the writes that touch sector `first`. Each touches all `cells`, which are from there.
    fn visit(&self, first: u64, cells: &mut [Cell]) {
        let point = self.state.point;
        for number in self.index.descending(first, self.history.issued_end(point)) {
            let wide = u64::from(number);
            if cells.iter().all(|cell| cell.is_settled(wide)) {
                break;
            }
            let Some(write) = self.history.request(wide) else { continue };
            if write.issued_after > point {
                continue;
            }
            let is_durable = self.history.durable_at(wide) <= point;
            let is_flushed_discard = self.history.is_flushed_discard(wide, point);
            let start = write.at / SECTOR;
            for (sector, cell) in (first..).zip(&mut *cells) {
                let is_lost = match &self.state.losses {
                    _ if is_flushed_discard && self.state.discards => true,
                    Losses::All => !is_durable && !is_flushed_discard,
                    these @ Losses::These(_) => these.covers(wide, sector - start),
                };
                cell.visit(number, write.issued_after, is_durable, is_lost);
            }
        }
    }
}

/// The sectors of `block` in a state.
pub(crate) fn cells(history: &History, index: &BlockIndex, block: u64, state: &StateName) -> Cells {
    let first = block * (BLOCK / SECTOR);
    let mut cells = [Cell::default(); SECTORS];
    let visit = Visit { history, index, state };
    if index.is_partial(block) {
        // Each sector has writes of its own, and stops at its own last durable one.
        for (sector, cell) in (first..).zip(&mut cells) {
            visit.visit(sector, std::slice::from_mut(cell));
        }
    } else {
        visit.visit(first, &mut cells);
    }
    let mut found = Cells::default();
    for (cell, (value, losable)) in cells.iter().zip(found.value.iter_mut().zip(&mut found.losable))
    {
        let (settled, may_be_lost) = cell.settle();
        *value = settled;
        *losable = settled.filter(|_| may_be_lost);
    }
    found
}
