//! The files of a layered disk: the top, layers below it, and a raw base, one behind the other on
//! one medium. What this module knows of their format is docs/layer-format.md, not the product.
//!
//! A file that does not answer for a block has a value there that is never legal, as the data of a
//! write that was never made durable.

use std::ops::Range;

use super::content::{Bytes, Value};
use fixtures::Random;

/// Sectors of a block.
pub(super) const BLOCK: usize = 8;
/// Where a layer has its map and its data, in sectors. A granule starts there.
const MAP_AT: usize = 16;
const DATA_AT: usize = 32;
/// The files start at multiples of this: their granules are those of the medium.
const FILE_ALIGNMENT: usize = 32;

/// The files of a disk of a plan.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Sectors of the disk.
    sectors: usize,
    /// Sectors of the base, which may end within a block.
    base_sectors: usize,
    /// The blocks that each layer answers for at the start, from the top down: a bit for each.
    maps: Vec<u64>,
}

impl Chain {
    /// One to three layers over a base. Half of the tops have no block.
    pub(super) fn draw(sectors: usize, unit: usize, random: &mut Random) -> Self {
        let blocks = sectors.div_ceil(BLOCK);
        let mut map =
            || (0..blocks).fold(0, |bits, block| bits | u64::from(random.coin()) << block);
        let mut maps: Vec<u64> = (0..3).map(|_| map()).collect();
        maps.truncate(random.within(1, 3));
        if random.coin() {
            maps[0] = 0;
        }
        let missing = if random.coin() { 0 } else { random.below(sectors / unit) * unit };
        Self { sectors, base_sectors: sectors - missing, maps }
    }

    /// Number of files.
    pub(super) fn files(&self) -> usize {
        self.maps.len() + 1
    }

    /// The sectors of a file on the medium.
    pub(super) fn file(&self, level: usize) -> Range<usize> {
        let layer = (DATA_AT + self.sectors).next_multiple_of(FILE_ALIGNMENT);
        let start = level * layer;
        start..start + self.data_at(level) + self.size(level)
    }

    /// Where a file has the first sector of the disk.
    pub(super) fn data_at(&self, level: usize) -> usize {
        if level < self.maps.len() { DATA_AT } else { 0 }
    }

    /// Sectors of the disk that a level has.
    pub(super) fn size(&self, level: usize) -> usize {
        if level < self.maps.len() { self.sectors } else { self.base_sectors }
    }

    /// Sectors of the base.
    pub(super) fn base_sectors(&self) -> usize {
        self.base_sectors
    }

    /// The sectors of a layer's map on the medium; `None` of the base.
    pub(super) fn map(&self, level: usize) -> Option<Range<usize>> {
        let first = self.file(level).start + MAP_AT;
        (level < self.maps.len()).then_some(first..first + BLOCK)
    }

    /// The sectors of the medium that a power cut may leave with some bits of a write.
    pub(super) fn top_map(&self) -> Range<usize> {
        self.map(0).unwrap_or_default()
    }

    /// The initial content of the medium, of a disk whose first value is `number`.
    pub(super) fn medium(&self, number: u32) -> Vec<Bytes> {
        let mut medium = vec![[0; 512]; self.file(self.maps.len()).end];
        for (level, bits) in self.maps.iter().enumerate() {
            let first = self.file(level).start + MAP_AT;
            medium[first][..8].copy_from_slice(&bits.to_le_bytes());
        }
        for level in 0..self.files() {
            for sector in 0..self.size(level) {
                let at = self.file(level).start + self.data_at(level) + sector;
                medium[at] = Value::STALE.bytes(sector);
            }
        }
        for sector in 0..self.sectors {
            let is_beyond = sector >= self.base_sectors;
            let value = if is_beyond { Value::Zero } else { Value::Written(number) };
            if let Some(at) = self.place(sector, |level| self.maps[level]) {
                medium[at] = value.bytes(sector);
            }
        }
        medium
    }

    /// The sector of the medium that has a sector of the disk, as the bits of the layers' maps say;
    /// `None` if it is zero.
    pub(super) fn place(&self, sector: usize, bits: impl Fn(usize) -> u64) -> Option<usize> {
        let answers = |level: &usize| bits(*level) >> (sector / BLOCK) & 1 != 0;
        let level = (0..self.maps.len()).find(answers).unwrap_or(self.maps.len());
        let at = self.file(level).start + self.data_at(level) + sector;
        (sector < self.size(level)).then_some(at)
    }

    /// The same, as the maps on the medium say.
    pub(super) fn place_on<'a>(
        &self,
        sector: usize,
        visible: impl Fn(usize) -> &'a Bytes,
    ) -> Option<usize> {
        let bits = |level: usize| {
            let map = visible(self.file(level).start + MAP_AT);
            u64::from_le_bytes(*map.first_chunk().unwrap())
        };
        self.place(sector, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_answer_has_no_legal_value() {
        let chain = Chain { sectors: 32, base_sectors: 26, maps: vec![0b1000, 0b1010] };
        let medium = chain.medium(7);
        let read = |sector| {
            let at = chain.place_on(sector, |at| &medium[at]);
            at.map_or(Some(Value::Zero), |at| Value::of(&medium[at], sector))
        };
        assert_eq!((read(0), read(9), read(25)), (Some(Value::Written(7)), read(10), read(24)));
        assert_eq!((read(26), read(31)), (Some(Value::Zero), Some(Value::Zero)));
        let file = |level: usize, sector: usize| {
            let at = chain.file(level).start + chain.data_at(level) + sector;
            Value::of(&medium[at], sector)
        };
        assert_eq!(
            [file(0, 0), file(1, 0), file(2, 0)],
            [Some(Value::STALE), Some(Value::STALE), read(0)]
        );
        assert_eq!(
            [file(0, 8), file(1, 8), file(2, 8)],
            [Some(Value::STALE), read(8), Some(Value::STALE)]
        );
        assert_eq!([file(0, 24), file(1, 24)], [read(24), Some(Value::STALE)]);
    }
}
