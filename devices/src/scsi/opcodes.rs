//! The table of commands, for dispatch and for REPORT SUPPORTED OPERATION CODES: the report
//! contains exactly the commands that are executed.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bytes::{len16, len32};
use super::cdb::{Cdb, opcode};
use super::command::{Command, Outcome, data_in, with_header};
use super::persistent_reserve::{
    read_full_status, read_keys, read_reservation, report_capabilities, reserve_out,
};
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{
    capacity, get_lba_status, inquiry, log, mode, mode_select, power, provisioning, reservations,
    transfer,
};

/// The implementation of a command.
type Handler = fn(&LogicalUnit, &Command<'_>) -> Outcome;

/// One command.
#[derive(Clone, Copy)]
struct CommandEntry {
    /// The CDB usage data: the operation code, then a mask of the bits that are evaluated (SPC-4
    /// §6.35.3).
    usage: &'static [u8],
    /// The service action, if several commands share the operation code.
    action: Option<u8>,
    /// Whether a unit attention condition is reported instead (SAM-5 §5.14.1).
    reports_attention: bool,
    /// Whether a stopped unit refuses the command.
    needs_medium: bool,
    handler: Handler,
}

impl CommandEntry {
    fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }

    fn is_supported(&self, unit: &LogicalUnit) -> bool {
        self.opcode() != opcode::UNMAP || unit.discard().is_some()
    }
}

/// A command that accesses the medium.
const fn medium(usage: &'static [u8], handler: Handler) -> CommandEntry {
    CommandEntry { usage, action: None, reports_attention: true, needs_medium: true, handler }
}

/// A command about the unit.
const fn about(usage: &'static [u8], handler: Handler) -> CommandEntry {
    CommandEntry { usage, action: None, reports_attention: true, needs_medium: false, handler }
}

/// A command that is executed in any state of the unit.
const fn always(usage: &'static [u8], handler: Handler) -> CommandEntry {
    CommandEntry { usage, action: None, reports_attention: false, needs_medium: false, handler }
}

/// A command with a service action.
const fn action(action: u8, entry: CommandEntry) -> CommandEntry {
    CommandEntry { action: Some(action), ..entry }
}

/// All commands, the most frequent first.
#[rustfmt::skip]
static COMMANDS: [CommandEntry; 50] = [
    medium(&[0x28, 0xf8, 255, 255, 255, 255, 0, 255, 255, 4], transfer::read),
    medium(&[0x2a, 0xf8, 255, 255, 255, 255, 0, 255, 255, 4], transfer::write),
    medium(&[0x88, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::read),
    medium(&[0x8a, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write),
    medium(&[0x35, 0, 255, 255, 255, 255, 0, 255, 255, 4], transfer::synchronize_cache),
    medium(&[0x91, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::synchronize_cache),
    medium(&[opcode::UNMAP, 0x01, 0, 0, 0, 0, 0, 255, 255, 4], provisioning::unmap),
    medium(&[0x00, 0, 0, 0, 0, 4], inquiry::test_unit_ready),
    always(&[opcode::REQUEST_SENSE, 1, 0, 0, 255, 4], power::request_sense),
    medium(&[0x08, 0x1f, 255, 255, 255, 4], transfer::read),
    medium(&[0x0a, 0x1f, 255, 255, 255, 4], transfer::write),
    always(&[opcode::INQUIRY, 1, 255, 255, 255, 4], inquiry::inquiry),
    about(&[0x15, 0x11, 0, 0, 255, 4], mode_select::mode_select),
    about(&[0x1a, 0x08, 255, 255, 255, 4], mode::mode_sense),
    about(&[0x1b, 0, 0, 0, 0xf7, 4], power::start_stop_unit),
    about(&[0x1d, 0xe0, 0, 255, 255, 4], power::send_diagnostic),
    about(&[0x1e, 0, 0, 0, 3, 4], power::prevent_allow),
    medium(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4], capacity::read_capacity_10),
    medium(&[0x2e, 0xf6, 255, 255, 255, 255, 0, 255, 255, 4], transfer::write_and_verify),
    medium(&[0x2f, 0xf6, 255, 255, 255, 255, 0, 255, 255, 4], transfer::verify),
    medium(&[0x34, 0, 255, 255, 255, 255, 0, 255, 255, 4], transfer::prefetch),
    medium(&[0x41, 0xfe, 255, 255, 255, 255, 0, 255, 255, 4], provisioning::write_same),
    about(&[0x4d, 0x01, 255, 255, 0, 255, 255, 255, 255, 4], log::log_sense),
    about(&[0x55, 0x11, 0, 0, 0, 0, 0, 255, 255, 4], mode_select::mode_select),
    about(&[0x5a, 0x18, 255, 255, 0, 0, 0, 255, 255, 4], mode::mode_sense),
    action(0, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], read_keys)),
    action(1, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], read_reservation)),
    action(2, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], report_capabilities)),
    action(3, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], read_full_status)),
    action(reservations::REGISTER, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::RESERVE, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::RELEASE, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::CLEAR, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::PREEMPT, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::PREEMPT_AND_ABORT, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    action(reservations::REGISTER_AND_IGNORE, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reserve_out)),
    medium(&[0x89, 0xe8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 255, 0, 4], transfer::compare_and_write),
    medium(&[0x8e, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write_and_verify),
    medium(&[0x8f, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::verify),
    medium(&[opcode::WRITE_SAME_16, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], provisioning::write_same),
    medium(&[0x90, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::prefetch),
    action(0x10, medium(&[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 4], capacity::read_capacity_16)),
    action(0x12, medium(&[0x9e, 0x1f, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], get_lba_status::get_lba_status)),
    always(&[opcode::REPORT_LUNS, 0, 255, 0, 0, 0, 255, 255, 255, 255, 0, 4], inquiry::report_luns_of),
    action(0x0c, about(&[0xa3, 0x1f, 0x87, 255, 255, 255, 255, 255, 255, 255, 0, 4], report_opcodes)),
    action(0x0d, about(&[0xa3, 0x1f, 0x80, 0, 0, 0, 255, 255, 255, 255, 0, 4], report_task_management)),
    medium(&[0xa8, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::read),
    medium(&[0xaa, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write),
    medium(&[0xae, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write_and_verify),
    medium(&[0xaf, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::verify),
];

/// Executes a command as far as the medium is not accessed.
pub(super) fn execute(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let found = find(unit, command.cdb);
    let reports_attention = found.as_ref().map_or(true, |entry| entry.reports_attention);
    if reports_attention && let Some(attention) = unit.take_attention() {
        return Err(attention.sense().into());
    }
    let entry = found?;
    if entry.needs_medium && unit.is_stopped() {
        return Err(Sense::STOPPED.into());
    }
    (entry.handler)(unit, command)
}

/// The table's entry for a CDB that the initiator sent completely.
fn find(unit: &LogicalUnit, cdb: &Cdb) -> Result<&'static CommandEntry, Sense> {
    let opcode = cdb.opcode();
    let mut known = COMMANDS.iter().filter(|entry| entry.opcode() == opcode);
    let Some(first) = known.next().filter(|entry| entry.is_supported(unit)) else {
        return Err(Sense::INVALID_COMMAND);
    };
    let entry = match first.action {
        None => first,
        Some(_) => {
            let action = Some(cdb.byte(1) & 0x1f);
            let mut entries = std::iter::once(first).chain(known);
            entries.find(|entry| entry.action == action).ok_or_else(|| cdb.invalid_bit(1, 4))?
        }
    };
    if cdb.sent() < cdb.len() {
        // The driver has configured a shorter `cdb_size`.
        return Err(cdb.invalid(u16::try_from(cdb.sent()).unwrap_or(0)));
    }
    let control = cdb.len() - 1;
    if cdb.bit(control, 2) {
        // NACA: no ACA condition exists (SAM-5 §5.3.2, NORMACA = 0).
        return Err(cdb.invalid_bit(u16::try_from(control).unwrap_or(0), 2));
    }
    Ok(entry)
}

/// A command timeouts descriptor (SPC-4 §6.35.4): no timeouts are specified.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct CommandTimeouts {
    descriptor_length: U16,
    reserved: u8,
    command_specific: u8,
    nominal_command_processing_timeout: U32,
    recommended_command_timeout: U32,
}

impl CommandTimeouts {
    const NONE: Self = Self {
        descriptor_length: U16::new(10),
        reserved: 0,
        command_specific: 0,
        nominal_command_processing_timeout: U32::ZERO,
        recommended_command_timeout: U32::ZERO,
    };
}

/// A command descriptor of the all_commands format (SPC-4 §6.35.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct CommandDescriptor {
    operation_code: u8,
    reserved_1: u8,
    service_action: U16,
    reserved_4: u8,
    /// CTDP and SERVACTV.
    flags: u8,
    cdb_length: U16,
}

/// The header of the one_command format (SPC-4 §6.35.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct OneCommandHeader {
    reserved: u8,
    /// CTDP and SUPPORT.
    support: u8,
    cdb_size: U16,
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS parameter data (SPC-4 §6.36).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct SupportedTaskManagement {
    functions: [u8; 2],
    reserved: u8,
    /// Length of the extended format, if requested.
    additional_data_length: u8,
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
fn report_opcodes(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    let with_timeouts = cdb.bit(2, 7);
    let (opcode, action) = (cdb.byte(3), cdb.be16(4));
    let supported = || COMMANDS.iter().filter(|entry| entry.is_supported(unit));
    let has_actions = supported().any(|entry| entry.opcode() == opcode && entry.action.is_some());
    let is_known = supported().any(|entry| entry.opcode() == opcode);
    // REPORTING OPTIONS.
    let by_action = match cdb.byte(2) & 7 {
        0 => return data_in(all_commands(supported(), with_timeouts), cdb.be32(6).into()),
        1 if has_actions => return Err(cdb.invalid_bit(2, 2).into()),
        2 if is_known && !has_actions => return Err(cdb.invalid_bit(2, 2).into()),
        1 => false,
        2 => true,
        3 => has_actions,
        _ => return Err(cdb.invalid_bit(2, 2).into()),
    };
    let found = supported().find(|entry| {
        let is_requested = !by_action || entry.action.map(u16::from) == Some(action);
        entry.opcode() == opcode && is_requested
    });
    data_in(one_command(found, with_timeouts), cdb.be32(6).into())
}

fn all_commands<'a>(
    entries: impl Iterator<Item = &'a CommandEntry>,
    with_timeouts: bool,
) -> Vec<u8> {
    const SERVACTV: u8 = 1;
    const CTDP: u8 = 2;
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| (entry.opcode(), entry.action));
    let mut list = Vec::new();
    for entry in entries {
        let servactv = if entry.action.is_some() { SERVACTV } else { 0 };
        let descriptor = CommandDescriptor {
            operation_code: entry.opcode(),
            service_action: u16::from(entry.action.unwrap_or(0)).into(),
            flags: servactv | if with_timeouts { CTDP } else { 0 },
            cdb_length: len16(entry.usage.len()).into(),
            ..FromZeros::new_zeroed()
        };
        list.extend(descriptor.as_bytes());
        if with_timeouts {
            list.extend(CommandTimeouts::NONE.as_bytes());
        }
    }
    with_header(&U32::new(len32(list.len())), &list)
}

fn one_command(entry: Option<&CommandEntry>, with_timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 1;
    const CONFORMS_TO_STANDARD: u8 = 3;
    const CTDP: u8 = 0x80;
    let Some(entry) = entry else {
        let header = OneCommandHeader { reserved: 0, support: NOT_SUPPORTED, cdb_size: U16::ZERO };
        return header.as_bytes().to_vec();
    };
    let header = OneCommandHeader {
        reserved: 0,
        support: CONFORMS_TO_STANDARD | if with_timeouts { CTDP } else { 0 },
        cdb_size: len16(entry.usage.len()).into(),
    };
    let mut usage = entry.usage.to_vec();
    if let (Some(action), Some(byte)) = (entry.action, usage.get_mut(1)) {
        // The usage data contains the service action itself (SPC-4 §6.35.3).
        *byte = action;
    }
    if with_timeouts {
        usage.extend(CommandTimeouts::NONE.as_bytes());
    }
    with_header(&header, &usage)
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
fn report_task_management(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    const ABORT_TASK: u8 = 0x80;
    const ABORT_TASK_SET: u8 = 0x40;
    const CLEAR_TASK_SET: u8 = 0x10;
    const LOGICAL_UNIT_RESET: u8 = 0x08;
    const QUERY_TASK: u8 = 0x04;
    const QUERY_TASK_SET: u8 = 0x02;
    const I_T_NEXUS_RESET: u8 = 0x01;
    /// Length of the timeouts in the extended format: none is specified.
    const TIMEOUTS_BYTES: u8 = 12;
    let cdb = command.cdb;
    let allocation = cdb.be32(6);
    if allocation < 4 {
        return Err(cdb.invalid(6).into());
    }
    let first = ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | LOGICAL_UNIT_RESET | QUERY_TASK;
    // REPD.
    let is_extended = cdb.bit(2, 7);
    let header = SupportedTaskManagement {
        functions: [first, QUERY_TASK_SET | I_T_NEXUS_RESET],
        reserved: 0,
        additional_data_length: if is_extended { TIMEOUTS_BYTES } else { 0 },
    };
    let timeouts = vec![0; usize::from(header.additional_data_length)];
    data_in(with_header(&header, &timeouts), allocation.into())
}

/// The operation codes of all commands.
#[cfg(test)]
pub(super) fn known_opcodes() -> Vec<u8> {
    COMMANDS.iter().map(CommandEntry::opcode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_data_has_the_length_of_its_cdb() {
        for entry in &COMMANDS {
            let cdb = Cdb::new(entry.usage);
            assert_eq!(entry.usage.len(), cdb.len(), "{:#x}", entry.opcode());
            let mask = entry.action.map_or(0, |_| 0x1f);
            assert_eq!(entry.usage[1] & mask, mask);
        }
    }

    #[test]
    fn commands_are_unique() {
        let mut seen = Vec::new();
        for entry in &COMMANDS {
            let name = (entry.opcode(), entry.action);
            assert!(!seen.contains(&name), "{name:?}");
            seen.push(name);
        }
    }
}
