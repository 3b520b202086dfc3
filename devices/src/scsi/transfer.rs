//! Commands that read, write, verify and prefetch blocks (SBC-3 §5).

use ::block::{ByteRange, Durability};

use super::cdb::{Cdb, CdbForm};
use super::command::{Answer, Command, Outcome, good};
use super::job::{Expected, Job};
use super::sense::Sense;
use super::unit::LogicalUnit;

/// The logical blocks that a command addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockAddress {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Byte of the CDB at which the count starts.
    pub(super) count_at: u16,
}

impl BlockAddress {
    /// The blocks of a command in any of the four forms.
    pub(super) fn of(cdb: &Cdb) -> Self {
        match cdb.form() {
            CdbForm::Six => {
                // An address of 21 bits; a count of zero means 256 blocks (SBC-3 §5.8).
                let first = u64::from(cdb.be32(0) & 0x1f_ffff);
                let count = match cdb.byte(4) {
                    0 => 256,
                    count => u64::from(count),
                };
                Self { first, count, count_at: 4 }
            }
            CdbForm::Ten => {
                Self { first: cdb.be32(2).into(), count: cdb.be16(7).into(), count_at: 7 }
            }
            CdbForm::Twelve => {
                Self { first: cdb.be32(2).into(), count: cdb.be32(6).into(), count_at: 6 }
            }
            CdbForm::Sixteen => {
                Self { first: cdb.be64(2), count: cdb.be32(10).into(), count_at: 10 }
            }
        }
    }
}

/// READ (6), (10), (12) and (16).
pub(super) fn read(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let range = transfer(unit, command.cdb)?;
    match range.len {
        0 => good(),
        // A disk that is only read has no data to flush.
        _ if fua(command.cdb) && !unit.backend().read_only() => {
            Ok(Answer::Work(Job::read_and_flush(range)))
        }
        _ => Ok(Answer::Work(Job::read(range))),
    }
}

/// WRITE (6), (10), (12) and (16).
pub(super) fn write(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let range = transfer(unit, command.cdb)?;
    unit.check_writable()?;
    match range.len {
        0 => good(),
        _ => Ok(Answer::Work(Job::write(range, durability(unit, fua(command.cdb))))),
    }
}

/// VERIFY (10), (12) and (16).
pub(super) fn verify(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    compare(unit, command, false)
}

/// WRITE AND VERIFY (10), (12) and (16). The write is durable, so that the medium is verified.
pub(super) fn write_and_verify(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    unit.check_writable()?;
    compare(unit, command, true)
}

fn compare(unit: &LogicalUnit, command: &Command<'_>, write: bool) -> Outcome {
    let range = transfer(unit, command.cdb)?;
    let expected = match command.cdb.byte(1) >> 1 & 3 {
        0 => Expected::Nothing,
        1 => Expected::DataOut,
        3 if !write => Expected::Block(command.parameters(unit.block_bytes().into())?),
        _ => return Err(command.cdb.invalid_bit(1, 2).into()),
    };
    match range.len {
        0 => good(),
        _ => Ok(Answer::Work(Job::verify(range, expected, write))),
    }
}

/// COMPARE AND WRITE.
pub(super) fn compare_and_write(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    check_protection(cdb)?;
    let (first, count) = (cdb.be64(2), u64::from(cdb.byte(13)));
    if count > unit.limits().compare_and_write_blocks {
        return Err(cdb.invalid(13).into());
    }
    let range = unit.range(first, count)?;
    unit.check_writable()?;
    match count {
        0 => good(),
        _ => Ok(Answer::Work(Job::compare_and_write(range, durability(unit, fua(cdb))))),
    }
}

/// SYNCHRONIZE CACHE (10) and (16). Flushes the whole cache and completes afterwards, also with
/// IMMED, which only permits an earlier completion.
pub(super) fn synchronize_cache(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let BlockAddress { first, count, .. } = BlockAddress::of(command.cdb);
    unit.range(first, count)?;
    Ok(Answer::Work(Job::flush()))
}

/// PRE-FETCH (10) and (16) (SBC-3 §5.9, §5.10). Reads nothing, because no data is cached here.
/// CONDITION MET would mean that all blocks are in a cache; GOOD means that not all of them fit.
/// IMMED only permits an earlier completion.
pub(super) fn prefetch(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let BlockAddress { first, count, .. } = BlockAddress::of(command.cdb);
    // A count of zero means all blocks to the end: at least the first one.
    unit.range(first, count.max(1))?;
    good()
}

/// The range of a transfer, checked to be on the disk and within the transfer limit.
fn transfer(unit: &LogicalUnit, cdb: &Cdb) -> Result<ByteRange, Sense> {
    let BlockAddress { first, count, count_at } = BlockAddress::of(cdb);
    check_protection(cdb)?;
    let range = unit.range(first, count)?;
    if count > unit.limits().transfer_blocks { Err(cdb.invalid(count_at)) } else { Ok(range) }
}

/// Refuses protection information, which blocks do not have (SBC-3 §4.22.4). Six byte commands have
/// no field for it.
pub(super) fn check_protection(cdb: &Cdb) -> Result<(), Sense> {
    let is_requested = cdb.form() != CdbForm::Six && cdb.byte(1) >> 5 != 0;
    if is_requested { Err(cdb.invalid_bit(1, 7)) } else { Ok(()) }
}

fn fua(cdb: &Cdb) -> bool {
    cdb.form() != CdbForm::Six && cdb.bit(1, 3)
}

fn durability(unit: &LogicalUnit, fua: bool) -> Durability {
    if fua { Durability::Durable } else { unit.write_cache().durability() }
}
