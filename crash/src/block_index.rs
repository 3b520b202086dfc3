//! Which requests touch a block of the disk. Pure.

use std::collections::{HashMap, HashSet};

use crate::history::History;

/// The unit in which contents are compared, in bytes.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
/// The same, as a length in memory.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Sectors of 512 bytes in a block, as a binary logarithm.
const BLOCK_LEVEL: u32 = 3;
/// Bytes of a sector.
const SECTOR: u64 = BLOCK >> BLOCK_LEVEL;

/// The writes of a history by the sectors that they touch.
///
/// A range of sectors is entered as at most 128 aligned ranges with a power of two of sectors, so
/// that the index grows with the number of writes, whatever their length.
#[derive(Debug, Default)]
pub(crate) struct BlockIndex {
    /// By binary logarithm of the length: the numbers of writes, ascending, by the range's place.
    levels: Vec<(u32, HashMap<u64, Vec<u32>>)>,
    /// Blocks of which some writes touch a part only.
    partial: HashSet<u64>,
}

impl BlockIndex {
    /// The index of a history of at most `u32::MAX` requests.
    pub(crate) fn new(history: &History) -> Self {
        let mut levels: Vec<HashMap<u64, Vec<u32>>> = Vec::new();
        let mut partial = HashSet::new();
        for (number, request) in (0u32..).zip(history.requests()) {
            let first = request.at / SECTOR;
            for (level, place) in aligned_ranges(first, first + request.sectors()) {
                let depth = level as usize;
                if levels.len() <= depth {
                    levels.resize_with(depth + 1, HashMap::new);
                }
                if let Some(places) = levels.get_mut(depth) {
                    places.entry(place).or_default().push(number);
                }
                if level < BLOCK_LEVEL {
                    partial.insert(place >> (BLOCK_LEVEL - level));
                }
            }
        }
        let used = (0u32..).zip(levels).filter(|(_, places)| !places.is_empty());
        Self { levels: used.collect(), partial }
    }

    /// Whether a write touches the block.
    pub(crate) fn touches(&self, block: u64) -> bool {
        let wide = self.levels.iter().filter(|(level, _)| *level >= BLOCK_LEVEL);
        let touched = |(level, places): &(u32, HashMap<u64, Vec<u32>>)| {
            places.contains_key(&(block >> (level - BLOCK_LEVEL)))
        };
        self.is_partial(block) || wide.into_iter().any(touched)
    }

    /// Whether a write touches a part of the block only, so that its sectors differ.
    pub(crate) fn is_partial(&self, block: u64) -> bool {
        self.partial.contains(&block)
    }

    /// The numbers of the writes that touch the sector and are below `end`, highest first.
    pub(crate) fn descending(&self, sector: u64, end: u64) -> Descending<'_> {
        let lists = self.levels.iter().filter_map(|(level, places)| {
            let list = places.get(&(sector >> level))?;
            let list = list.get(..list.partition_point(|number| u64::from(*number) < end))?;
            (!list.is_empty()).then_some(list)
        });
        Descending { lists: lists.collect() }
    }
}

/// Numbers of writes, highest first, merged from ascending lists.
pub(crate) struct Descending<'i> {
    lists: Vec<&'i [u32]>,
}

impl Iterator for Descending<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let list = self.lists.iter_mut().max_by_key(|list| list.last().copied())?;
        let (last, rest) = list.split_last()?;
        *list = rest;
        Some(*last)
    }
}

/// The sectors from `start` to before `end` as aligned ranges: the binary logarithm of the length
/// and the place in units of the length.
fn aligned_ranges(start: u64, end: u64) -> impl Iterator<Item = (u32, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let level = at.trailing_zeros().min(left.ilog2());
        let place = at >> level;
        at += 1 << level;
        Some((level, place))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn aligned_ranges_are_the_range(start in 0..5000u64, len in 1..5000u64) {
            let blocks: Vec<u64> = aligned_ranges(start, start + len)
                .flat_map(|(level, place)| (place << level)..((place + 1) << level))
                .collect();
            prop_assert_eq!(blocks, (start..start + len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_longest_range_has_few_parts() {
        assert!(aligned_ranges(1, u64::MAX >> 12).count() <= 128);
    }
}
