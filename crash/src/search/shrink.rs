//! Reduces a failing state: restores lost writes for as long as it still fails.

use std::collections::BTreeMap;

use super::options::{Atomicity, FoundState, Stage};
use super::runs::{Halt, Known, Run, Runs};
use crate::block_index::BLOCK;
use crate::cells::SECTOR;
use crate::check::Failure;
use crate::history::Recorded;
use crate::losses::{Loss, Losses};
use crate::name::StateName;

/// A failing state, reduced.
pub(crate) enum Reduced {
    /// It fails each time.
    Failing(FoundState),
    /// It, or what it was reduced to, passed when it was checked again. The run is that of the
    /// state as it was found, if that passed.
    Flaky(FoundState, Option<Run>),
}

/// Reduces a state that failed when its check read `blocks`, until it is stopped.
pub(crate) fn reduce(
    runs: &Runs<'_>,
    found: &StateName,
    failure: Failure,
    blocks: &[u64],
) -> Result<Reduced, Halt> {
    let before = runs.stage();
    runs.enter(Stage::Reduction);
    let reduced = Reduction { runs, point: found.point }.reduce(found, failure, blocks);
    runs.enter(before);
    reduced
}

struct Reduction<'r, 'a> {
    runs: &'r Runs<'a>,
    point: u64,
}

/// A lost piece of a write.
type Piece = (u64, Loss);

impl Reduction<'_, '_> {
    fn reduce(&self, found: &StateName, failure: Failure, blocks: &[u64]) -> Result<Reduced, Halt> {
        let as_found = |failure| FoundState {
            name: found.clone(),
            failure,
            lost: self.seen_lost(found, &[]).len(),
            shrunk_from: None,
        };
        let first = match self.runs.repeat(found) {
            Ok(Known { failure: Some(again), .. }) => again,
            Ok(Known { run, .. }) => return Ok(Reduced::Flaky(as_found(failure), Some(run))),
            Err(Halt::End(_)) => return Ok(Reduced::Failing(as_found(failure))),
            Err(error) => return Err(error),
        };
        let name = match self.smaller(found, blocks) {
            Ok(name) => name,
            Err(Halt::End(_)) => return Ok(Reduced::Failing(as_found(first))),
            Err(error) => return Err(error),
        };
        if name == *found {
            return Ok(Reduced::Failing(as_found(first)));
        }
        // The last word has a check, as a verdict may have been known from another state.
        let lost = name.losses.len().unwrap_or_default();
        Ok(match self.runs.repeat(&name) {
            Ok(Known { failure: Some(failure), .. }) => {
                let shrunk_from = Some(found.clone());
                Reduced::Failing(FoundState { name, failure, lost, shrunk_from })
            }
            Ok(_) => Reduced::Flaky(as_found(first), None),
            Err(Halt::End(_)) => Reduced::Failing(as_found(first)),
            Err(error) => return Err(error),
        })
    }

    fn smaller(&self, found: &StateName, blocks: &[u64]) -> Result<StateName, Halt> {
        let lost = self.seen_lost(found, blocks);
        let start = if self.fails(&lost)? { lost } else { self.seen_lost(found, &[]) };
        let writes = self.fewest(start)?;
        let pieces: Vec<Piece> =
            writes.iter().flat_map(|(write, loss)| self.pieces(*write, loss)).collect();
        let fewer = if pieces.len() > writes.len() { self.fewest(pieces)? } else { writes };
        Ok(self.name(&fewer))
    }

    /// The lost writes that touch one of `blocks`, or all if there are none.
    fn seen_lost(&self, found: &StateName, blocks: &[u64]) -> Vec<Piece> {
        let source = self.runs.recording.source();
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable();
        let touches = |write: &Recorded| {
            let (first, last) = (write.at / BLOCK, (write.at + write.len - 1) / BLOCK);
            let from = blocks.partition_point(|block| *block < first);
            blocks.is_empty() || blocks.get(from).is_some_and(|block| *block <= last)
        };
        let seen = source
            .lost(found)
            .into_iter()
            .filter(|(number, _)| source.history.request(*number).is_some_and(touches));
        seen.collect()
    }

    /// The fewest of `lost` that still fail, as far as restoring halves, quarters and so on finds
    /// them.
    fn fewest(&self, mut lost: Vec<Piece>) -> Result<Vec<Piece>, Halt> {
        let mut chunk = lost.len().div_ceil(2).max(1);
        loop {
            let (mut at, mut restored) = (0, false);
            while at < lost.len() {
                let end = (at + chunk).min(lost.len());
                let rest: Vec<Piece> = lost
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| !(at..end).contains(place))
                    .map(|(_, piece)| piece.clone())
                    .collect();
                if self.fails(&rest)? {
                    lost = rest;
                    restored = true;
                } else {
                    at = end;
                }
            }
            if chunk == 1 && !restored {
                return Ok(lost);
            }
            chunk = (chunk / 2).max(1);
        }
    }

    /// The pieces of a torn write. A write that is lost as a whole remains so.
    fn pieces(&self, number: u64, loss: &Loss) -> Vec<Piece> {
        let history = &self.runs.recording.source().history;
        let (Loss::Sectors(ranges), Some(write)) = (loss, history.request(number)) else {
            return vec![(number, loss.clone())];
        };
        let unit = match self.runs.options.atomicity {
            Atomicity::Sector | Atomicity::Whole => 1,
            Atomicity::Block => BLOCK / SECTOR,
        };
        let start = write.at / SECTOR;
        let mut pieces = Vec::new();
        for (first, count) in ranges {
            let (mut from, end) = (start + first, start + first + count);
            // A long range is a tear at one place, whose pieces are too many to restore one by one.
            if *count > 64 * unit {
                pieces.push((number, Loss::Sectors(vec![(*first, *count)])));
                continue;
            }
            while from < end {
                let to = ((from / unit + 1) * unit).min(end);
                pieces.push((number, Loss::Sectors(vec![(from - start, to - from)])));
                from = to;
            }
        }
        pieces
    }

    fn fails(&self, lost: &[Piece]) -> Result<bool, Halt> {
        self.runs.fails(&self.name(lost))
    }

    fn name(&self, lost: &[Piece]) -> StateName {
        let mut these: BTreeMap<u64, Loss> = BTreeMap::new();
        for (write, loss) in lost {
            let both = these.get(write).map_or_else(|| loss.clone(), |had| had.and(loss));
            these.insert(*write, both);
        }
        StateName { point: self.point, losses: Losses::These(these), discards: false }
    }
}
