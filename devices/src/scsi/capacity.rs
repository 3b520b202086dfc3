//! READ CAPACITY (10) and (16) (SBC-3 §5.16, §5.17).

use super::bytes::put;
use super::unit::LogicalUnit;
use super::{Command, Outcome, data_in};

/// The answer's length, in bytes.
const SHORT: usize = 8;
const LONG: usize = 32;

/// READ CAPACITY (10). A last block beyond thirty-two bits is told as all ones: ask with the long form.
pub(super) fn read_capacity_10(unit: &LogicalUnit, _: &Command<'_>) -> Outcome {
    let last = u32::try_from(unit.last_block()).unwrap_or(u32::MAX);
    let mut answer = vec![0; SHORT];
    put(&mut answer, 0, &last.to_be_bytes());
    put(&mut answer, 4, &unit.block().to_be_bytes());
    data_in(answer, SHORT as u64)
}

/// READ CAPACITY (16).
pub(super) fn read_capacity_16(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let per_physical = (unit.geometry().physical_block / unit.block().max(1)).max(1);
    let exponent = u8::try_from(per_physical.ilog2()).unwrap_or(0);
    let (mut lbpme, mut lbprz) = (0, 0);
    if let Some(discard) = unit.discard() {
        lbpme = 0x80;
        lbprz = if discard.reads_zero { 0x40 } else { 0 };
    }
    let mut answer = vec![0; LONG];
    put(&mut answer, 0, &unit.last_block().to_be_bytes());
    put(&mut answer, 8, &unit.block().to_be_bytes());
    // No protection information; the first block is aligned.
    put(&mut answer, 13, &[exponent & 0xf, lbpme | lbprz]);
    data_in(answer, command.cdb.be32(10).into())
}
