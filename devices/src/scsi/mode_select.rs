//! MODE SELECT (6) and (10) (SPC-4 §6.11). The whole parameter list is checked before anything
//! changes.

use super::bytes::{be16, be32, be64, byte};
use super::cdb::CdbForm;
use super::command::{Answer, Command, Outcome, good, good_after};
use super::job::Job;
use super::mode::{self, CACHING, CONTROL, D_SENSE, Values, WCE};
use super::sense::Sense;
use super::unit::LogicalUnit;

/// The changes in a parameter list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ModeChanges {
    write_cache: Option<bool>,
    descriptor_sense: Option<bool>,
}

/// MODE SELECT.
pub(super) fn mode_select(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if !cdb.bit(1, 4) {
        return Err(cdb.invalid_bit(1, 4).into()); // PF: only pages in the format of SPC
    }
    if cdb.bit(1, 0) {
        return Err(cdb.invalid_bit(1, 0).into()); // SP: pages cannot be saved
    }
    let is_long = cdb.form() == CdbForm::Ten;
    let len = if is_long { u64::from(cdb.be16(7)) } else { u64::from(cdb.byte(4)) };
    if len == 0 {
        return good();
    }
    let list = command.parameters(len)?;
    let changes = read_list(unit, &list, is_long)?;
    apply(unit, changes, len)
}

/// Writes that completed before the write cache is switched off must not stay volatile: the command
/// completes after a flush. If the flush fails, the command fails and the cache has the state that
/// it had before.
fn apply(unit: &LogicalUnit, changes: ModeChanges, len: u64) -> Outcome {
    if let Some(descriptor_sense) = changes.descriptor_sense {
        unit.set_descriptor_sense(descriptor_sense);
    }
    match changes.write_cache {
        Some(true) => unit.write_cache().switch_on(),
        // Also if it is off: the flush of another command may be in flight.
        Some(false) => {
            unit.write_cache().begin_switch_off();
            return Ok(Answer::Work(Job::cache_off(len)));
        }
        None => {}
    }
    good_after(len)
}

fn read_list(unit: &LogicalUnit, list: &[u8], is_long: bool) -> Result<ModeChanges, Sense> {
    let header = if is_long { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    let (descriptor_len, long_lba) = if is_long {
        (usize::from(be16(list, 6)), byte(list, 4) & 1 == 1)
    } else {
        (usize::from(byte(list, 3)), false)
    };
    let descriptor =
        list.get(header..header + descriptor_len).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    check_descriptor(unit, descriptor, header, long_lba)?;
    let mut at = header + descriptor_len;
    let mut changes = ModeChanges::default();
    while at < list.len() {
        at += read_page(unit, list, at, &mut changes)?;
    }
    Ok(changes)
}

/// Checks that a block descriptor changes neither capacity nor block length.
fn check_descriptor(
    unit: &LogicalUnit,
    descriptor: &[u8],
    at: usize,
    long_lba: bool,
) -> Result<(), Sense> {
    let (count, block, block_at) = match (descriptor.len(), long_lba) {
        (0, _) => return Ok(()),
        (8, false) => {
            let count = be32(descriptor, 0);
            let count = if count == u32::MAX { u64::MAX } else { count.into() };
            (count, be32(descriptor, 4) & 0xff_ffff, 5)
        }
        (16, true) => (be64(descriptor, 0), be32(descriptor, 12), 12),
        _ => return Err(Sense::invalid_parameter(at - 1, None)),
    };
    if block != unit.block_bytes() {
        return Err(Sense::invalid_parameter(at + block_at, None));
    }
    // Zero and all ones stand for the current capacity (SBC-3 §6.5.2.2).
    let same = count == 0 || count == u64::MAX || count == unit.last_block() + 1;
    if same { Ok(()) } else { Err(Sense::invalid_parameter(at, None)) }
}

/// Reads the page at offset `at` and returns its length in bytes.
fn read_page(
    unit: &LogicalUnit,
    list: &[u8],
    at: usize,
    changes: &mut ModeChanges,
) -> Result<usize, Sense> {
    // SPF: the header has a subpage code and a length of two bytes.
    let is_subpage = byte(list, at) & 0x40 != 0;
    let (header, length_at) = if is_subpage { (4, 2) } else { (2, 1) };
    let subpage = if is_subpage { byte(list, at + 1) } else { 0 };
    let code = (byte(list, at) & 0x3f, subpage);
    let pages = [Values::Current, Values::Changeable].map(|values| mode::page(unit, code, values));
    let [Some(current), Some(changeable)] = pages else {
        return Err(Sense::invalid_parameter(at, Some(if is_subpage { 6 } else { 5 })));
    };
    let sent = list.get(at..).unwrap_or_default();
    if sent.len() < header {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    if byte(&current, 0) & 0x40 != byte(sent, 0) & 0x40 {
        return Err(Sense::invalid_parameter(at, Some(6)));
    }
    if sent.get(length_at..header) != current.get(length_at..header) {
        return Err(Sense::invalid_parameter(at + length_at, None));
    }
    let sent = sent.get(..current.len()).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    for offset in header..current.len() {
        let fixed = !byte(&changeable, offset);
        let differing = (byte(sent, offset) ^ byte(&current, offset)) & fixed;
        if differing != 0 {
            let bit = u8::try_from(differing.ilog2()).unwrap_or(0);
            return Err(Sense::invalid_parameter(at + offset, Some(bit)));
        }
    }
    match code {
        CACHING if unit.has_write_cache() => changes.write_cache = Some(byte(sent, 2) & WCE != 0),
        CONTROL => changes.descriptor_sense = Some(byte(sent, 2) & D_SENSE != 0),
        _ => {}
    }
    Ok(current.len())
}
