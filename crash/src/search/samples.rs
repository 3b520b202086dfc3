//! Random states, each determined by the seed and its number. Pure.

use std::collections::BTreeMap;

use super::options::Atomicity;
use super::points::Points;
use crate::block_index::BLOCK;
use crate::cells::SECTOR;
use crate::history::{History, Recorded};
use crate::losses::{Loss, Losses};
use crate::name::StateName;

/// Most pieces of a write that are lost or not one by one; a longer write is torn at one place.
const PIECES_MAX: u64 = 64;

/// Most discards that a flush followed and that are lost or not one by one.
const OLD_DISCARDS_MAX: usize = 64;

/// Random numbers: SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64, number: u64) -> Self {
        let mut random = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// The random state `number`, `None` if its power cut finds nothing open.
pub(crate) fn sample(
    history: &History,
    points: &Points,
    atomicity: Atomicity,
    seed: u64,
    number: u64,
) -> Option<StateName> {
    let mut random = Random::new(seed, number);
    // Every second one is next to a flush, where most is open.
    let near = if number.is_multiple_of(2) { points.first } else { 0 };
    let among = if near == 0 { points.all.len() } else { near };
    let at = usize::try_from(random.below(among as u64)).ok()?;
    lose(history, *points.all.get(at)?, atomicity, &mut random)
}

/// A random state of one power cut, `None` if that finds nothing open.
pub(crate) fn sample_at(
    history: &History,
    point: u64,
    atomicity: Atomicity,
    seed: u64,
) -> Option<StateName> {
    lose(history, point, atomicity, &mut Random::new(!seed, point))
}

fn lose(
    history: &History,
    point: u64,
    atomicity: Atomicity,
    random: &mut Random,
) -> Option<StateName> {
    let (discards, old) = lost_discards(history, point, random);
    let open: Vec<u64> = open(history, point);
    let eighths = [4, 1, 7].get(usize::try_from(random.below(3)).ok()?).copied()?;
    let mut lost: BTreeMap<u64, Loss> = old;
    for write in &open {
        if random.below(8) < eighths {
            lost.insert(*write, Loss::Whole);
        }
    }
    for _ in 0..random.below(3) {
        let torn = open.get(usize::try_from(random.below(open.len() as u64)).ok()?);
        let Some(torn) = torn else { break };
        if let Some(loss) = tear(history.request(*torn)?, atomicity, random) {
            lost.insert(*torn, loss);
        }
    }
    let is_any = discards || !lost.is_empty();
    is_any.then_some(StateName { point, losses: Losses::These(lost), discards })
}

/// The writes that a power cut finds open, without the discards that a flush followed. All from
/// the first that is not durable are looked through.
fn open(history: &History, point: u64) -> Vec<u64> {
    (0..history.issued_end(point))
        .filter(|number| history.is_open(*number, point))
        .filter(|number| !history.is_flushed_discard(*number, point))
        .collect()
}

/// Discards that a flush followed: none, all of them, or some of the last ones.
fn lost_discards(
    history: &History,
    point: u64,
    random: &mut Random,
) -> (bool, BTreeMap<u64, Loss>) {
    if history.discards_from() > point {
        return (false, BTreeMap::new());
    }
    match random.below(3) {
        0 => (false, BTreeMap::new()),
        1 => (true, BTreeMap::new()),
        _ => {
            let last = history.flushed_discards(point).take(OLD_DISCARDS_MAX);
            let lost = last.filter(|_| random.below(2) == 0);
            (false, lost.map(|number| (number, Loss::Whole)).collect())
        }
    }
}

fn tear(write: &Recorded, atomicity: Atomicity, random: &mut Random) -> Option<Loss> {
    let (start, sectors) = (write.at / SECTOR, write.sectors());
    let unit = match atomicity {
        Atomicity::Sector => 1,
        Atomicity::Block => BLOCK / SECTOR,
        Atomicity::Whole => return None,
    };
    let (first, end) = (start / unit, (start + sectors).div_ceil(unit));
    if end - first < 2 {
        return None;
    }
    let range = |piece: u64, last: u64| {
        let (from, to) = ((piece * unit).max(start), (last * unit).min(start + sectors));
        (from - start, to - from)
    };
    if end - first > PIECES_MAX {
        let cut = first + 1 + random.below(end - first - 1);
        let lost = if random.below(2) == 0 { range(first, cut) } else { range(cut, end) };
        return Some(Loss::Sectors(vec![lost]));
    }
    let bits = random.next();
    let lost = (first..end).filter(|piece| bits >> (piece - first) & 1 == 1);
    let ranges: Vec<_> = lost.map(|piece| range(piece, piece + 1)).collect();
    match Loss::Sectors(Vec::new()).and(&Loss::Sectors(ranges)) {
        Loss::Sectors(ranges) if ranges.is_empty() => None,
        Loss::Sectors(ranges) if ranges == [(0, sectors)] => Some(Loss::Whole),
        loss => Some(loss),
    }
}
