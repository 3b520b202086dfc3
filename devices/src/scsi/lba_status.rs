//! The parameter data of GET LBA STATUS (SBC-3 §5.3.2): the blocks that are allocated on the host.

use std::io;
use std::sync::Arc;

use ::block::{ByteOffset, Extent};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::bytes::len32;
use super::host_queries::AllocationQuery;
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

/// A GET LBA STATUS command whose answer depends on the extents of the host.
#[derive(Clone, Copy, Debug)]
pub struct LbaStatusQuery {
    /// First block of the answer.
    pub(super) first: u64,
    /// Block after the last one of the disk.
    pub(super) end: u64,
    /// Bytes of a block.
    pub(super) block: u64,
    /// ALLOCATION LENGTH.
    pub(super) allocation: u32,
}

impl LbaStatusQuery {
    /// The query of the host that the command needs. Its end signals `kick`.
    #[must_use]
    pub fn allocation_query(&self, kick: Arc<EventFd>) -> AllocationQuery {
        AllocationQuery::new(ByteOffset(self.first * self.block), self.max_descriptors(), kick)
    }

    /// The parameter data, truncated to the allocation length.
    ///
    /// # Errors
    ///
    /// The host did not report its extents.
    pub fn answer(
        &self,
        unit: &LogicalUnit,
        extents: io::Result<Vec<Extent>>,
    ) -> Result<Vec<u8>, Sense> {
        let extents = extents.map_err(|error| {
            unit.log_unknown_allocation(&error);
            Sense::UNRECOVERED_READ_ERROR
        })?;
        Ok(self.encode(&whole_blocks(&extents, self.block, self.first, self.end)))
    }

    /// The parameter data of a disk without provisioning management: every block is mapped.
    pub(super) fn fully_mapped(&self) -> Vec<u8> {
        self.encode(&[BlockRun { first: self.first, end: self.end, mapped: true }])
    }

    fn max_descriptors(&self) -> usize {
        let room = usize::try_from(self.allocation).unwrap_or(usize::MAX);
        let room = room.saturating_sub(size_of::<LbaStatusHeader>());
        (room / size_of::<LbaStatusDescriptor>()).clamp(1, MAX_DESCRIPTORS)
    }

    fn encode(&self, runs: &[BlockRun]) -> Vec<u8> {
        let descriptors = runs.iter().copied().flat_map(descriptors).take(self.max_descriptors());
        let list: Vec<u8> = descriptors.flat_map(|one| one.as_bytes().to_vec()).collect();
        let header = LbaStatusHeader {
            // The length covers the reserved field.
            parameter_data_length: len32(list.len() + 4).into(),
            reserved: 0.into(),
        };
        let mut data = [header.as_bytes(), &list].concat();
        data.truncate(usize::try_from(self.allocation).unwrap_or(usize::MAX));
        data
    }
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
