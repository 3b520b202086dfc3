//! UNMAP and WRITE SAME (SBC-3 §5.28, §5.44).

use ::block::ByteRange;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::cdb::{Cdb, opcode};
use super::command::{Answer, Command, Outcome, good, good_after};
use super::job::Job;
use super::sense::Sense;
use super::transfer::{BlockAddress, check_protection};
use super::unit::LogicalUnit;

/// The header of an UNMAP parameter list (SBC-3 §5.28.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
struct UnmapHeader {
    unmap_data_length: U16,
    unmap_block_descriptor_data_length: U16,
    reserved: U32,
}

/// An UNMAP block descriptor (SBC-3 §5.28.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
struct UnmapDescriptor {
    unmap_logical_block_address: U64,
    number_of_logical_blocks: U32,
    reserved: U32,
}

/// UNMAP. All ranges are checked before the first one is discarded.
pub(super) fn unmap(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.bit(1, 0) {
        return Err(cdb.invalid_bit(1, 0).into()); // ANCHOR: VPD page B2h has ANC_SUP = 0
    }
    let list_bytes = cdb.be16(7);
    if list_bytes == 0 {
        return good();
    }
    if usize::from(list_bytes) < size_of::<UnmapHeader>() {
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

/// The ranges of a parameter list that are not empty, merged with their neighbours. An incomplete
/// descriptor is ignored (§5.28.2).
fn unmap_ranges(unit: &LogicalUnit, list: &[u8]) -> Result<Vec<ByteRange>, Sense> {
    const DESCRIPTOR: usize = size_of::<UnmapDescriptor>();
    const COUNT_AT: usize = size_of::<UnmapHeader>() + 8;
    let (header, tail) =
        UnmapHeader::ref_from_prefix(list).map_err(|_| Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let bytes = usize::from(header.unmap_block_descriptor_data_length.get());
    let tail = tail.get(..bytes).unwrap_or(tail);
    let (descriptors, _) =
        <[UnmapDescriptor]>::ref_from_prefix_with_elems(tail, tail.len() / DESCRIPTOR)
            .map_err(|_| Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let limits = unit.limits();
    if descriptors.len() > limits.unmap_descriptors {
        return Err(Sense::invalid_parameter(2, None));
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    let mut total = 0;
    for (index, descriptor) in descriptors.iter().enumerate() {
        let first = descriptor.unmap_logical_block_address.get();
        let count = u64::from(descriptor.number_of_logical_blocks.get());
        let range = unit.range(first, count)?;
        total += count;
        if total > limits.unmap_blocks {
            return Err(Sense::invalid_parameter(COUNT_AT + index * DESCRIPTOR, None));
        }
        if range.len > 0 {
            ranges.push(range);
        }
    }
    Ok(merged(ranges))
}

/// Sorts the ranges and merges those that touch, so that parts of one granule are discarded
/// together.
fn merged(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
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
    let BlockAddress { first, count, count_at } = BlockAddress::of(cdb);
    let unmap = checked_flags(unit, cdb)?;
    // A count of zero would mean all blocks to the end; VPD page B0h has WSNZ = 1.
    if count == 0 || count > unit.limits().write_same_blocks {
        return Err(cdb.invalid(count_at).into());
    }
    let range = unit.range(first, count)?;
    unit.check_writable()?;
    let durability = unit.write_cache().durability();
    if no_data_out(cdb) {
        return Ok(Answer::Work(Job::zero(range, unmap, durability, 0)));
    }
    let block = command.parameters(unit.block_bytes().into())?;
    // Unmapped blocks must read as the block of the command (§4.7.3.4.3), which only zeroes do.
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Answer::Work(Job::zero(range, unmap, durability, block.len() as u64)));
    }
    Ok(Answer::Work(Job::write_same(range, &block, durability)))
}

/// NDOB, which only WRITE SAME (16) has.
fn no_data_out(cdb: &Cdb) -> bool {
    cdb.opcode() == opcode::WRITE_SAME_16 && cdb.bit(1, 0)
}

/// Whether the command permits to unmap blocks.
fn checked_flags(unit: &LogicalUnit, cdb: &Cdb) -> Result<bool, Sense> {
    let unmap = cdb.bit(1, 3);
    if cdb.bit(1, 4) {
        return Err(cdb.invalid_bit(1, 4)); // ANCHOR
    }
    // PBDATA and LBDATA of older drafts would make blocks differ.
    if let Some(bit) = [2, 1].into_iter().find(|bit| cdb.bit(1, *bit)) {
        return Err(cdb.invalid_bit(1, bit));
    }
    if unmap && unit.discard().is_none() {
        return Err(cdb.invalid_bit(1, 3)); // LBPWS = 0
    }
    Ok(unmap)
}
