//! GET LBA STATUS (SBC-3 §5.3): the blocks that are allocated on the host.

use ::block::{ByteOffset, Extent};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::bytes::len32;
use super::command::{Command, Outcome, data_in, with_header};
use super::sense::Sense;
use super::unit::LogicalUnit;

/// Maximum number of descriptors of an answer. The initiator continues after the last one.
const MAX_DESCRIPTORS: usize = 256;

/// Values of PROVISIONING STATUS.
const MAPPED: u8 = 0;
const DEALLOCATED: u8 = 1;

/// The header of GET LBA STATUS parameter data (SBC-3 §5.3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct LbaStatusHeader {
    parameter_data_length: U32,
    reserved: U32,
}

/// The LBA status descriptor (SBC-3 §5.3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct LbaStatusDescriptor {
    lba_status_logical_block_address: U64,
    number_of_logical_blocks: U32,
    provisioning_status: u8,
    reserved: [u8; 3],
}

/// GET LBA STATUS.
pub(super) fn get_lba_status(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let (first, allocation) = (command.cdb.be64(2), command.cdb.be32(10));
    let block = u64::from(unit.block_bytes());
    let blocks = unit.capacity() / block;
    if first >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE.into());
    }
    let room = usize::try_from(allocation).unwrap_or(usize::MAX);
    let room = room.saturating_sub(size_of::<LbaStatusHeader>());
    let limit = (room / size_of::<LbaStatusDescriptor>()).clamp(1, MAX_DESCRIPTORS);
    let runs = runs(unit, first, blocks, limit)?;
    let descriptors = runs.into_iter().flat_map(descriptors).take(limit);
    let list: Vec<u8> = descriptors.flat_map(|one| one.as_bytes().to_vec()).collect();
    let header = LbaStatusHeader {
        // The length covers the reserved field.
        parameter_data_length: len32(list.len() + 4).into(),
        reserved: 0.into(),
    };
    data_in(with_header(&header, &list), allocation.into())
}

/// Adjacent blocks with the same status, up to block `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockRun {
    first: u64,
    end: u64,
    mapped: bool,
}

/// The descriptors of a run, whose length may exceed the field of one.
fn descriptors(run: BlockRun) -> impl Iterator<Item = LbaStatusDescriptor> {
    let BlockRun { mut first, end, mapped } = run;
    std::iter::from_fn(move || {
        let count = u32::try_from(end - first).unwrap_or(u32::MAX);
        let descriptor = LbaStatusDescriptor {
            lba_status_logical_block_address: first.into(),
            number_of_logical_blocks: count.into(),
            provisioning_status: if mapped { MAPPED } else { DEALLOCATED },
            reserved: [0; 3],
        };
        first += u64::from(count);
        (count > 0).then_some(descriptor)
    })
}

/// The runs from block `first`, from at most `limit` extents of the host. Every block of a disk
/// without provisioning management is mapped.
fn runs(unit: &LogicalUnit, first: u64, end: u64, limit: usize) -> Result<Vec<BlockRun>, Sense> {
    if unit.discard().is_none() {
        return Ok(vec![BlockRun { first, end, mapped: true }]);
    }
    let block = u64::from(unit.block_bytes());
    let extents = unit.backend().allocation(ByteOffset(first * block), limit).map_err(|error| {
        unit.log_unknown_allocation(&error);
        Sense::UNRECOVERED_READ_ERROR
    })?;
    Ok(whole_blocks(&extents, block, first, end))
}

/// Extents to runs of whole blocks. A block with any data is mapped.
fn whole_blocks(extents: &[Extent], block: u64, first: u64, end: u64) -> Vec<BlockRun> {
    let mut runs: Vec<BlockRun> = Vec::new();
    let mut at = first;
    for Extent { range, data } in extents {
        let extent_end = range.start.0.saturating_add(range.len);
        let until = if *data { extent_end.div_ceil(block) } else { extent_end / block }.min(end);
        if until <= at {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.mapped == *data => run.end = until,
            _ => runs.push(BlockRun { first: at, end: until, mapped: *data }),
        }
        at = until;
    }
    if runs.is_empty() {
        // Only a hole within the first block is known.
        runs.push(BlockRun { first, end: first + 1, mapped: true });
    }
    runs
}

#[cfg(test)]
mod tests {
    use ::block::ByteRange;

    use super::*;

    fn extents(lens: &[(u64, bool)]) -> Vec<Extent> {
        let mut start = 0;
        let extent = |(len, data): &(u64, bool)| {
            let range = ByteRange { start: ByteOffset(start), len: *len };
            start += len;
            Extent { range, data: *data }
        };
        lens.iter().map(extent).collect()
    }

    #[test]
    fn a_block_with_any_data_is_mapped() {
        let run = |first, end, mapped| BlockRun { first, end, mapped };
        let runs = |lens: &[(u64, bool)]| whole_blocks(&extents(lens), 4096, 0, 100);
        assert_eq!(runs(&[(8192, false), (4096, true)]), [run(0, 2, false), run(2, 3, true)]);
        // A hole ends and data begins within a block.
        assert_eq!(runs(&[(5000, false), (4096, true)]), [run(0, 1, false), run(1, 3, true)]);
        assert_eq!(
            runs(&[(4096, true), (1024, false), (512, true), (1 << 20, false)]),
            [run(0, 2, true), run(2, 100, false)]
        );
        assert_eq!(runs(&[(512, false), (512, true), (1 << 20, false)])[0], run(0, 1, true));
        assert_eq!(runs(&[(512, false)]), [run(0, 1, true)], "the rest is unknown");
    }
}
