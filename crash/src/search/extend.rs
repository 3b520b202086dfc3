//! Which further losses a check would see, by what it read.

use std::collections::BTreeMap;

use super::options::Atomicity;
use crate::block_index::BLOCK;
use crate::cells::SECTOR;
use crate::history::Recorded;
use crate::losses::{Loss, Losses};
use crate::name::StateName;
use crate::source::{MARKS, Source};

/// Most parts of one write that are lost one by one, and most places at which it is torn.
const PARTS_MAX: usize = 16;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// A further loss: the write, and what of it.
pub(crate) type Further = (u64, Loss);

/// The losses that change a block of those that were read, each one with the pieces that were read
/// of it, in sectors from its start. Only a visible write changes anything; that below it becomes
/// visible in the state without it.
fn visible_pieces(
    source: &Source,
    atomicity: Atomicity,
    state: &StateName,
    blocks: &[u64],
) -> BTreeMap<u64, Vec<(u64, u64)>> {
    let mut found: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for block in blocks.iter().filter(|block| **block != MARKS) {
        let cells = source.cells(*block, state);
        let first = block * BLOCK_SECTORS;
        for (sector, losable) in (first..).zip(cells.losable) {
            let Some(number) = losable.map(u64::from) else { continue };
            let Some(write) = source.history.request(number) else { continue };
            let piece = piece(write, atomicity, sector);
            let pieces = found.entry(number).or_default();
            if pieces.last() != Some(&piece) {
                pieces.push(piece);
            }
        }
    }
    for pieces in found.values_mut() {
        pieces.sort_unstable();
        pieces.dedup();
    }
    found
}

/// Whether one of the blocks has what a flushed discard left in it.
pub(crate) fn sees_flushed_discard(source: &Source, state: &StateName, blocks: &[u64]) -> bool {
    let is_flushed_discard =
        |number: u32| source.history.is_flushed_discard(number.into(), state.point);
    let mut blocks = blocks.iter().filter(|block| **block != MARKS);
    blocks.any(|block| {
        let writers = source.cells(*block, state).value;
        writers.into_iter().flatten().any(is_flushed_discard)
    })
}

/// The piece of a write that has the disk's sector `sector`, in sectors from the write's start.
fn piece(write: &Recorded, atomicity: Atomicity, sector: u64) -> (u64, u64) {
    let (start, end) = (write.at / SECTOR, write.at / SECTOR + write.sectors());
    let (from, to) = match atomicity {
        Atomicity::Sector => (sector, sector + 1),
        Atomicity::Block => {
            let from = sector - sector % BLOCK_SECTORS;
            (from.max(start), (from + BLOCK_SECTORS).min(end))
        }
        Atomicity::Whole => (start, end),
    };
    (from - start, to - from)
}

fn part(write: &Recorded, first: u64, count: u64) -> Loss {
    if count >= write.sectors() { Loss::Whole } else { Loss::Sectors(vec![(first, count)]) }
}

/// Each piece that a check would see lost, alone.
pub(crate) fn pieces(
    source: &Source,
    atomicity: Atomicity,
    state: &StateName,
    blocks: &[u64],
) -> Vec<Further> {
    let mut further = Vec::new();
    for (number, pieces) in visible_pieces(source, atomicity, state, blocks) {
        let Some(write) = source.history.request(number) else { continue };
        let parts = pieces.iter().map(|(first, count)| (number, part(write, *first, *count)));
        further.extend(parts);
    }
    further
}

/// Further writes that a check would see lost: whole ones, or, if `torn`, single pieces and what is
/// before or after a piece. No discard that a flush followed before the power cut is among them:
/// those are lost together.
pub(crate) fn writes(
    source: &Source,
    atomicity: Atomicity,
    state: &StateName,
    blocks: &[u64],
    torn: bool,
) -> Vec<Further> {
    let Losses::These(lost) = &state.losses else { return Vec::new() };
    let mut further = Vec::new();
    for (number, pieces) in visible_pieces(source, atomicity, state, blocks) {
        let Some(write) = source.history.request(number) else { continue };
        let is_old = source.history.discard_flushed_at(number).is_some_and(|at| at < state.point);
        if lost.contains_key(&number) || is_old {
            continue;
        }
        let mut losses = if torn { tears(write, &pieces) } else { vec![Loss::Whole] };
        if source.history.durable_at(number) <= state.point {
            losses.retain(|loss| source.history.may_be_hidden(number, loss, state.point));
        }
        further.extend(losses.into_iter().map(|loss| (number, loss)));
    }
    further
}

fn tears(write: &Recorded, pieces: &[(u64, u64)]) -> Vec<Loss> {
    let sectors = write.sectors();
    let step = pieces.len().div_ceil(PARTS_MAX).max(1);
    let mut losses = Vec::new();
    for (first, count) in pieces.iter().step_by(step) {
        let before = (0, *first);
        let after = (*first + *count, sectors.saturating_sub(*first + *count));
        losses.extend(
            [(*first, *count), before, after].map(|(first, count)| part(write, first, count)),
        );
    }
    let is_tear = |loss: &Loss| match loss {
        Loss::Whole => false,
        Loss::Sectors(ranges) => ranges.iter().all(|(_, count)| *count > 0),
    };
    losses.retain(is_tear);
    losses.sort_unstable();
    losses.dedup();
    losses
}
