//! Commands that read, write and verify blocks (SBC-3 §5).

use ::block::{ByteRange, Durability};

use super::cdb::Form;
use super::job::{Against, Job};
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Answer, Cdb, Command, Outcome, good};

/// The blocks a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Which byte of the command holds the count.
    pub(super) count_at: u16,
}

impl Blocks {
    /// The blocks of a command in any of the four forms.
    pub(super) fn of(cdb: &Cdb) -> Self {
        match cdb.form() {
            Form::Six => {
                // Twenty-one bits, and no blocks stand for 256 (SBC-3 §5.8).
                let first = u64::from(cdb.be32(0) & 0x1f_ffff);
                let count = match cdb.byte(4) {
                    0 => 256,
                    count => u64::from(count),
                };
                Self { first, count, count_at: 4 }
            }
            Form::Ten => Self { first: cdb.be32(2).into(), count: cdb.be16(7).into(), count_at: 7 },
            Form::Twelve => {
                Self { first: cdb.be32(2).into(), count: cdb.be32(6).into(), count_at: 6 }
            }
            Form::Sixteen => Self { first: cdb.be64(2), count: cdb.be32(10).into(), count_at: 10 },
        }
    }
}

/// READ (6), (10), (12) and (16).
pub(super) fn read(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let range = transfer(unit, command.cdb)?;
    // With FUA the data comes from the medium: what is newer in the cache goes there first (SBC-3 §4.16.3).
    let from_medium = fua(command.cdb) && unit.write_cache().durability() == Durability::Volatile;
    match range.len {
        0 => good(),
        _ if from_medium => Ok(Answer::Work(Job::read_after_flush(range))),
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

/// WRITE AND VERIFY (10), (12) and (16). What is verified is on the medium, so the write is durable.
pub(super) fn write_and_verify(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    unit.check_writable()?;
    compare(unit, command, true)
}

fn compare(unit: &LogicalUnit, command: &Command<'_>, write: bool) -> Outcome {
    let range = transfer(unit, command.cdb)?;
    let against = match command.cdb.byte(1) >> 1 & 3 {
        0 => Against::Nothing,
        1 => Against::DataOut,
        3 if !write => Against::Block(command.parameters(unit.block().into())?),
        _ => return Err(command.cdb.wrong_bit(1, 2).into()),
    };
    match range.len {
        0 => good(),
        _ => Ok(Answer::Work(Job::verify(range, against, write))),
    }
}

/// COMPARE AND WRITE.
pub(super) fn compare_and_write(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    check_protection(cdb)?;
    let (first, count) = (cdb.be64(2), u64::from(cdb.byte(13)));
    if count > unit.limits().compare_and_write_blocks {
        return Err(cdb.wrong(13).into());
    }
    let range = unit.range(first, count)?;
    unit.check_writable()?;
    match count {
        0 => good(),
        _ => Ok(Answer::Work(Job::compare_and_write(range, durability(unit, fua(cdb))))),
    }
}

/// SYNCHRONIZE CACHE (10) and (16). All of the cache is written, whatever the range; and the command ends when
/// that is done, also with IMMED, which only permits to end it before.
pub(super) fn synchronize_cache(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let Blocks { first, count, .. } = Blocks::of(command.cdb);
    unit.range(first, count)?;
    Ok(Answer::Work(Job::flush()))
}

/// The range of a transfer, which lies within the disk and is not longer than one command may move.
fn transfer(unit: &LogicalUnit, cdb: &Cdb) -> Result<ByteRange, Sense> {
    let Blocks { first, count, count_at } = Blocks::of(cdb);
    check_protection(cdb)?;
    let range = unit.range(first, count)?;
    if count > unit.limits().transfer_blocks { Err(cdb.wrong(count_at)) } else { Ok(range) }
}

/// Blocks have no protection information, so none can be asked for (SBC-3 §4.22.4). Commands of six bytes
/// have no field for it.
pub(super) fn check_protection(cdb: &Cdb) -> Result<(), Sense> {
    let asked = cdb.form() != Form::Six && cdb.byte(1) >> 5 != 0;
    if asked { Err(cdb.wrong_bit(1, 7)) } else { Ok(()) }
}

fn fua(cdb: &Cdb) -> bool {
    cdb.form() != Form::Six && cdb.bit(1, 3)
}

fn durability(unit: &LogicalUnit, fua: bool) -> Durability {
    if fua { Durability::Durable } else { unit.write_cache().durability() }
}
