//! GET LBA STATUS (SBC-3 §5.3).

use super::command::{Answer, Command, Outcome, data_in};
use super::lba_status::LbaStatusQuery;
use super::sense::Sense;
use super::unit::LogicalUnit;

/// GET LBA STATUS. Every block of a disk without provisioning management is mapped; other disks
/// need a query of the host.
pub(super) fn get_lba_status(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let (first, allocation) = (command.cdb.be64(2), command.cdb.be32(10));
    let block = u64::from(unit.block_bytes());
    let query = LbaStatusQuery { first, end: unit.capacity() / block, block, allocation };
    if first >= query.end {
        return Err(Sense::LBA_OUT_OF_RANGE.into());
    }
    if unit.discard().is_none() {
        return data_in(query.fully_mapped(), allocation.into());
    }
    Ok(Answer::Query(query))
}
