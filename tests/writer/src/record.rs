//! The form of a record and its place on the disk.
//!
//! A record is a block of eight sectors. Each sector names the run, the record and its own place in
//! it, and has a checksum: a record that was torn between two sectors shows which of them are old.

/// Bytes of a record.
pub const RECORD: usize = 4096;
/// Bytes of a sector, the unit that a disk writes as a whole.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x5245_434f_5244_3141;
/// Bytes of magic, run, number and index.
const HEADER: usize = 32;
/// Where the checksum is.
const CHECKSUM: usize = SECTOR - 4;

/// The records of one run. They are numbered from 1.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    slots: u64,
    run: u64,
}

/// The content of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes: it was never written.
    Empty,
    /// The record with this number.
    Record(u64),
    /// Neither.
    Garbage,
}

impl Records {
    /// The records of the run `run` on a disk with place for `slots` records, a power of two.
    ///
    /// # Panics
    ///
    /// `slots` is no power of two.
    #[must_use]
    pub fn new(slots: u64, run: u64) -> Self {
        assert!(slots.is_power_of_two(), "{slots} slots: must be a power of two");
        Self { slots, run }
    }

    /// How many records the disk has place for.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The slot of a record. Records that follow each other are far apart, and each slot has one of
    /// any `slots` records that follow each other.
    #[must_use]
    pub fn slot(&self, number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15 | 1) & (self.slots - 1)
    }

    /// Fills `block` with a record.
    pub fn fill(&self, number: u64, block: &mut [u8; RECORD]) {
        for (index, sector) in (0_u64..).zip(block.chunks_exact_mut(SECTOR)) {
            let mut word = number.rotate_left(32) ^ index ^ self.run;
            for chunk in sector.chunks_exact_mut(8) {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            let header = [MAGIC, self.run, number, index].map(u64::to_le_bytes);
            let (head, rest) = sector.split_at_mut(HEADER);
            head.copy_from_slice(header.as_flattened());
            let (_, checksum) = rest.split_at_mut(CHECKSUM - HEADER);
            checksum.fill(0);
            let sum = crc32fast::hash(sector);
            if let Some(place) = sector.last_chunk_mut::<4>() {
                *place = sum.to_le_bytes();
            }
        }
    }

    /// The content of the sector number `index` of the slot `slot`.
    #[must_use]
    pub fn content(&self, slot: u64, index: u64, sector: &[u8; SECTOR]) -> Content {
        if sector.iter().all(|byte| *byte == 0) {
            return Content::Empty;
        }
        let word = |at: usize| {
            let bytes = sector.get(8 * at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let mut copy = *sector;
        let (_, checksum) = copy.split_at_mut(CHECKSUM);
        let found: [u8; 4] = checksum.try_into().unwrap_or_default();
        checksum.fill(0);
        let number = word(2);
        let is_valid = crc32fast::hash(&copy) == u32::from_le_bytes(found)
            && [word(0), word(1), word(3)] == [MAGIC, self.run, index]
            && number > 0
            && self.slot(number) == slot;
        if is_valid { Content::Record(number) } else { Content::Garbage }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::{Content, RECORD, Records, SECTOR};

    fn sector(records: &Records, number: u64, index: usize) -> [u8; SECTOR] {
        let mut block = [0; RECORD];
        records.fill(number, &mut block);
        *block[index * SECTOR..].first_chunk().unwrap()
    }

    #[test]
    fn each_slot_has_one_of_consecutive_records() {
        let records = Records::new(64, 1);
        for first in [1, 1000] {
            let mut slots: Vec<_> = (first..first + 64).map(|n| records.slot(n)).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sector_is_known_by_run_record_and_place() {
        let records = Records::new(64, 9);
        let good = sector(&records, 77, 3);
        let slot = records.slot(77);
        assert_eq!(records.content(slot, 3, &good), Content::Record(77));
        assert_eq!(records.content(slot, 4, &good), Content::Garbage, "the place in the record");
        assert_eq!(records.content(slot + 1, 3, &good), Content::Garbage, "the slot");
        assert_eq!(Records::new(64, 8).content(slot, 3, &good), Content::Garbage, "the run");
        for at in 0..SECTOR {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(records.content(slot, 3, &bad), Content::Garbage, "byte {at} changed");
        }
        assert_eq!(records.content(slot, 3, &[0; SECTOR]), Content::Empty);
    }
}
