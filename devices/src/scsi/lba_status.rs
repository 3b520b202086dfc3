//! GET LBA STATUS (SBC-3 §5.3): which blocks hold space, as the host knows it.

use ::block::{ByteOffset, Extent};

use super::bytes::{len32, put};
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Command, Outcome, data_in};

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;
/// The most descriptors of one answer; the initiator asks on from where they end.
const MOST_DESCRIPTORS: usize = 256;

/// PROVISIONING STATUS.
const MAPPED: u8 = 0;
const DEALLOCATED: u8 = 1;

/// See the module's documentation.
pub(super) fn get_lba_status(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let (first, allocation) = (command.cdb.be64(2), command.cdb.be32(10));
    let block = u64::from(unit.block());
    let blocks = unit.capacity() / block;
    if first >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE.into());
    }
    let room = usize::try_from(allocation).unwrap_or(usize::MAX).saturating_sub(HEADER);
    let most = (room / DESCRIPTOR).clamp(1, MOST_DESCRIPTORS);
    let mut answer = vec![0; HEADER];
    for Run { mut first, end, mapped } in runs(unit, first, blocks, most)? {
        while first < end && answer.len() < HEADER + most * DESCRIPTOR {
            let count = u32::try_from(end - first).unwrap_or(u32::MAX);
            let mut descriptor = [0; DESCRIPTOR];
            put(&mut descriptor, 0, &first.to_be_bytes());
            put(&mut descriptor, 8, &count.to_be_bytes());
            put(&mut descriptor, 12, &[if mapped { MAPPED } else { DEALLOCATED }]);
            answer.extend(descriptor);
            first += u64::from(count);
        }
    }
    let following = answer.len() - 4;
    put(&mut answer, 0, &len32(following));
    data_in(answer, allocation.into())
}

/// Neighbouring blocks of one status, up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    end: u64,
    mapped: bool,
}

/// What is mapped from block `first` on, as far as the host tells of `most` extents. On a disk without provisioning
/// management everything is.
fn runs(unit: &LogicalUnit, first: u64, end: u64, most: usize) -> Result<Vec<Run>, Sense> {
    if unit.discard().is_none() {
        return Ok(vec![Run { first, end, mapped: true }]);
    }
    let block = u64::from(unit.block());
    let extents = unit.backend().allocation(ByteOffset(first * block), most).map_err(|error| {
        if let Some(suppressed) = unit.allocation_untold.check() {
            let name = unit.name();
            tracing::warn!(target: "scsi", suppressed, "{name}: cannot tell what is allocated: {error}");
        }
        Sense::UNRECOVERED_READ_ERROR
    })?;
    Ok(whole_blocks(&extents, block, first, end))
}

/// Extents as runs of whole blocks: one that holds any data is mapped.
fn whole_blocks(extents: &[Extent], block: u64, first: u64, end: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = first;
    for Extent { range, data } in extents {
        let behind = range.start.0.saturating_add(range.len);
        let until = if *data { behind.div_ceil(block) } else { behind / block }.min(end);
        if until <= at {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.mapped == *data => run.end = until,
            _ => runs.push(Run { first: at, end: until, mapped: *data }),
        }
        at = until;
    }
    if runs.is_empty() {
        // A hole smaller than the block that it begins.
        runs.push(Run { first, end: first + 1, mapped: true });
    }
    runs
}

#[cfg(test)]
mod tests {
    use ::block::ByteRange;

    use super::*;

    fn extents(lens: &[(u64, bool)]) -> Vec<Extent> {
        let mut start = 0;
        let place = |(len, data): &(u64, bool)| {
            let range = ByteRange { start: ByteOffset(start), len: *len };
            start += len;
            Extent { range, data: *data }
        };
        lens.iter().map(place).collect()
    }

    #[test]
    fn a_block_with_any_data_is_mapped() {
        let run = |first, end, mapped| Run { first, end, mapped };
        let runs = |lens: &[(u64, bool)]| whole_blocks(&extents(lens), 4096, 0, 100);
        assert_eq!(runs(&[(8192, false), (4096, true)]), [run(0, 2, false), run(2, 3, true)]);
        // A hole ends, and data begins, within a block.
        assert_eq!(runs(&[(5000, false), (4096, true)]), [run(0, 1, false), run(1, 3, true)]);
        assert_eq!(
            runs(&[(4096, true), (1024, false), (512, true), (1 << 20, false)]),
            [run(0, 2, true), run(2, 100, false)]
        );
        assert_eq!(runs(&[(512, false), (512, true), (1 << 20, false)])[0], run(0, 1, true));
        assert_eq!(runs(&[(512, false)]), [run(0, 1, true)], "nobody knows what follows");
    }
}
