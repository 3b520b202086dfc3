//! Blocks of the database: their kind, their fields, and a checksum.

use super::{BLOCK, Fault};

/// Kinds of blocks.
pub(super) const SUPERBLOCK: u64 = 0x5355_5045;
pub(super) const PAGE: u64 = 0x5041_4745;
pub(super) const COMMIT: u64 = 0x434f_4d4d;

/// Where the fields are: kind, number, value and checksum in the first sector, and the value again
/// in each sector, so that a torn block has two.
const VALUE_AT: usize = 16;
const SUM_AT: usize = 24;
const SECTOR: usize = 512;

/// A block with these fields.
pub(super) fn encode(kind: u64, number: u64, value: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    for sector in block.chunks_exact_mut(SECTOR) {
        put(sector, VALUE_AT, value);
    }
    put(&mut block, 0, kind);
    put(&mut block, 8, number);
    let sum = checksum(&block);
    put(&mut block, SUM_AT, sum);
    block
}

/// The number and the value of a block of this kind; `None` if it is of another or, with
/// `is_checked`, its checksum is wrong.
pub(super) fn decode(block: &[u8], kind: u64, is_checked: bool) -> Option<(u64, u64)> {
    let is_valid = get(block, 0) == kind && (!is_checked || get(block, SUM_AT) == checksum(block));
    is_valid.then(|| (get(block, 8), get(block, VALUE_AT)))
}

/// Whether all sectors of a block have its value.
pub(super) fn is_whole(block: &[u8]) -> bool {
    let value = get(block, VALUE_AT);
    block.chunks_exact(SECTOR).all(|sector| get(sector, VALUE_AT) == value)
}

/// The checksum of a block, without its own place.
pub(super) fn checksum(block: &[u8]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(block.get(..SUM_AT).unwrap_or_default());
    hasher.update(block.get(SUM_AT + 8..).unwrap_or_default());
    hasher.finalize().into()
}

/// The checksum of the pages of a record.
pub(super) fn sum_of(pages: &[Vec<u8>], fault: Option<Fault>) -> u64 {
    let is_half = fault == Some(Fault::HalfOfLogChecked);
    let count = if is_half { pages.len() / 2 } else { pages.len() };
    pages.iter().take(count).fold(0, |sum: u64, page| sum.rotate_left(1) ^ checksum(page))
}

pub(super) fn get(block: &[u8], at: usize) -> u64 {
    let word = block.get(at..at + 8).and_then(|word| word.try_into().ok());
    u64::from_le_bytes(word.unwrap_or_default())
}

pub(super) fn put(block: &mut [u8], at: usize, value: u64) {
    if let Some(word) = block.get_mut(at..at + 8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}
