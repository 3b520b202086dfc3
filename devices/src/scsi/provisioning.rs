//! Commands that give blocks back and that fill them: UNMAP and WRITE SAME (SBC-3 §5.28, §5.44).

use ::block::ByteRange;

use super::bytes::{be16, be32, be64};
use super::job::Job;
use super::sense::Sense;
use super::transfer::{Blocks, check_protection};
use super::unit::LogicalUnit;
use super::{Answer, Cdb, Command, Outcome, good, good_after};

/// Bytes before the descriptors of an UNMAP parameter list, and of each.
const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// UNMAP. All ranges are checked before the first is discarded.
pub(super) fn unmap(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.bit(1, 0) {
        return Err(cdb.wrong_bit(1, 0).into()); // ANCHOR: VPD page B2h says ANC_SUP = 0.
    }
    let list_bytes = cdb.be16(7);
    if list_bytes == 0 {
        return good();
    }
    if usize::from(list_bytes) < HEADER {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.into());
    }
    unit.check_writable()?;
    let list = command.parameters(list_bytes.into())?;
    let ranges = unmap_ranges(unit, &list)?;
    match Job::unmap(ranges, unit.write_cache().durability(), list_bytes.into()) {
        Some(job) => Ok(Answer::Work(job)),
        None => good_after(list_bytes.into()),
    }
}

/// The ranges of a parameter list that are not empty, neighbours joined. A descriptor that is not there whole is none
/// (§5.28.2).
fn unmap_ranges(unit: &LogicalUnit, list: &[u8]) -> Result<Vec<ByteRange>, Sense> {
    let descriptors_bytes = usize::from(be16(list, 2));
    let descriptors = list.get(HEADER..).unwrap_or_default();
    let descriptors = descriptors.get(..descriptors_bytes).unwrap_or(descriptors);
    let descriptors = descriptors.chunks_exact(DESCRIPTOR);
    let limits = unit.limits();
    if descriptors.len() > limits.unmap_descriptors {
        return Err(Sense::invalid_parameter(2, None));
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    let mut total = 0;
    for (index, descriptor) in descriptors.enumerate() {
        let (first, count) = (be64(descriptor, 0), u64::from(be32(descriptor, 8)));
        let range = unit.range(first, count)?;
        total += count;
        if total > limits.unmap_blocks {
            return Err(Sense::invalid_parameter(HEADER + index * DESCRIPTOR + 8, None));
        }
        if range.len > 0 {
            ranges.push(range);
        }
    }
    Ok(joined(ranges))
}

/// What the ranges cover, in order: pieces of the host's units of space that make whole ones are one range.
fn joined(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let end = |range: &ByteRange| range.start.0 + range.len;
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let touches = next.start.0 <= end(range);
        if touches {
            range.len = end(range).max(end(next)) - range.start.0;
        }
        touches
    });
    ranges
}

/// WRITE SAME (10) and (16).
pub(super) fn write_same(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    check_protection(cdb)?;
    let Blocks { first, count, count_at } = Blocks::of(cdb);
    let unmap = checked_flags(unit, cdb)?;
    // No blocks would stand for all up to the end; VPD page B0h says WSNZ = 1.
    if count == 0 || count > unit.limits().write_same_blocks {
        return Err(cdb.wrong(count_at).into());
    }
    let range = unit.range(first, count)?;
    unit.check_writable()?;
    let durability = unit.write_cache().durability();
    if no_data_out(cdb) {
        return Ok(Answer::Work(Job::zero(range, unmap, durability, 0)));
    }
    let block = command.parameters(unit.block().into())?;
    // What is unmapped has to read as the block afterwards (§4.7.3.4.3): only zeroes can be had that way.
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Answer::Work(Job::zero(range, unmap, durability, block.len() as u64)));
    }
    Ok(Answer::Work(Job::same(range, &block, durability)))
}

/// NDOB, which only the long form has.
fn no_data_out(cdb: &Cdb) -> bool {
    cdb.opcode() == super::opcodes::WRITE_SAME_16 && cdb.bit(1, 0)
}

/// Whether blocks may be given back.
fn checked_flags(unit: &LogicalUnit, cdb: &Cdb) -> Result<bool, Sense> {
    let unmap = cdb.bit(1, 3);
    if cdb.bit(1, 4) {
        return Err(cdb.wrong_bit(1, 4)); // ANCHOR
    }
    // PBDATA and LBDATA of older drafts would make each block another one.
    if let Some(bit) = [2, 1].into_iter().find(|bit| cdb.bit(1, *bit)) {
        return Err(cdb.wrong_bit(1, bit));
    }
    if unmap && unit.discard().is_none() {
        return Err(cdb.wrong_bit(1, 3)); // LBPWS = 0
    }
    Ok(unmap)
}
