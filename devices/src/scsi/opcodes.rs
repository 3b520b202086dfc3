//! The table of commands: what is dispatched, and what REPORT SUPPORTED OPERATION CODES tells of it.
//!
//! Both read the same table, so that what is reported is what there is.

use super::bytes::{len16, len32, put};
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{
    Cdb, Command, Outcome, capacity, data_in, inquiry, lba_status, log, mode, mode_select, power,
    provisioning, reservations, transfer,
};

pub(super) const REQUEST_SENSE: u8 = 0x03;
pub(super) const INQUIRY: u8 = 0x12;
pub(super) const REPORT_LUNS: u8 = 0xa0;
pub(super) const WRITE_SAME_16: u8 = 0x93;
const UNMAP: u8 = 0x42;

/// One command.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// By its first byte the operation code. A set bit is one that the unit looks at (SPC-4 §6.35.3).
    usage: &'static [u8],
    /// The service action, where the operation code has several commands.
    action: Option<u8>,
    /// Whether a unit attention condition is told instead of carrying it out (SAM-5 §5.14.1).
    pub(super) tells_attention: bool,
    /// Whether a stopped unit cannot do it.
    pub(super) needs_medium: bool,
    pub(super) run: fn(&LogicalUnit, &Command<'_>) -> Outcome,
}

impl Entry {
    fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }

    fn is_offered(&self, unit: &LogicalUnit) -> bool {
        self.opcode() != UNMAP || unit.discard().is_some()
    }
}

type Run = fn(&LogicalUnit, &Command<'_>) -> Outcome;

/// A command that works on the medium.
const fn medium(usage: &'static [u8], run: Run) -> Entry {
    Entry { usage, action: None, tells_attention: true, needs_medium: true, run }
}

/// A command about the unit.
const fn about(usage: &'static [u8], run: Run) -> Entry {
    Entry { usage, action: None, tells_attention: true, needs_medium: false, run }
}

/// A command that is carried out whatever happened to the unit.
const fn always(usage: &'static [u8], run: Run) -> Entry {
    Entry { usage, action: None, tells_attention: false, needs_medium: false, run }
}

/// One of several commands of an operation code.
const fn action(action: u8, entry: Entry) -> Entry {
    Entry { action: Some(action), ..entry }
}

/// All commands, the most frequent first.
#[rustfmt::skip]
static COMMANDS: [Entry; 48] = [
    medium(&[0x28, 0xf8, 255, 255, 255, 255, 0, 255, 255, 4], transfer::read),
    medium(&[0x2a, 0xf8, 255, 255, 255, 255, 0, 255, 255, 4], transfer::write),
    medium(&[0x88, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::read),
    medium(&[0x8a, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write),
    medium(&[0x35, 0, 255, 255, 255, 255, 0, 255, 255, 4], transfer::synchronize_cache),
    medium(&[0x91, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::synchronize_cache),
    medium(&[UNMAP, 0x01, 0, 0, 0, 0, 0, 255, 255, 4], provisioning::unmap),
    medium(&[0x00, 0, 0, 0, 0, 4], inquiry::test_unit_ready),
    always(&[REQUEST_SENSE, 1, 0, 0, 255, 4], power::request_sense),
    medium(&[0x08, 0x1f, 255, 255, 255, 4], transfer::read),
    medium(&[0x0a, 0x1f, 255, 255, 255, 4], transfer::write),
    always(&[INQUIRY, 1, 255, 255, 255, 4], inquiry::inquiry),
    about(&[0x15, 0x11, 0, 0, 255, 4], mode_select::mode_select),
    about(&[0x1a, 0x08, 255, 255, 255, 4], mode::mode_sense),
    about(&[0x1b, 0, 0, 0, 0xf7, 4], power::start_stop_unit),
    about(&[0x1d, 0xe0, 0, 255, 255, 4], power::send_diagnostic),
    about(&[0x1e, 0, 0, 0, 3, 4], power::prevent_allow),
    medium(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4], capacity::read_capacity_10),
    medium(&[0x2e, 0xf6, 255, 255, 255, 255, 0, 255, 255, 4], transfer::write_and_verify),
    medium(&[0x2f, 0xf6, 255, 255, 255, 255, 0, 255, 255, 4], transfer::verify),
    medium(&[0x41, 0xfe, 255, 255, 255, 255, 0, 255, 255, 4], provisioning::write_same),
    about(&[0x4d, 0x01, 255, 255, 0, 255, 255, 255, 255, 4], log::log_sense),
    about(&[0x55, 0x11, 0, 0, 0, 0, 0, 255, 255, 4], mode_select::mode_select),
    about(&[0x5a, 0x18, 255, 255, 0, 0, 0, 255, 255, 4], mode::mode_sense),
    action(0, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], reservations::read_keys)),
    action(1, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], reservations::read_reservation)),
    action(2, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], reservations::report_capabilities)),
    action(3, about(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 255, 255, 4], reservations::read_full_status)),
    action(reservations::REGISTER, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::RESERVE, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::RELEASE, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::CLEAR, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::PREEMPT, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::PREEMPT_AND_ABORT, about(&[0x5f, 0x1f, 255, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    action(reservations::REGISTER_AND_IGNORE, about(&[0x5f, 0x1f, 0, 0, 0, 255, 255, 255, 255, 4], reservations::reserve_out)),
    medium(&[0x89, 0xe8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 255, 0, 4], transfer::compare_and_write),
    medium(&[0x8e, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write_and_verify),
    medium(&[0x8f, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::verify),
    medium(&[WRITE_SAME_16, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], provisioning::write_same),
    action(0x10, medium(&[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 4], capacity::read_capacity_16)),
    action(0x12, medium(&[0x9e, 0x1f, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], lba_status::get_lba_status)),
    always(&[REPORT_LUNS, 0, 255, 0, 0, 0, 255, 255, 255, 255, 0, 4], inquiry::report_luns_of),
    action(0x0c, about(&[0xa3, 0x1f, 0x87, 255, 255, 255, 255, 255, 255, 255, 0, 4], report_opcodes)),
    action(0x0d, about(&[0xa3, 0x1f, 0x80, 0, 0, 0, 255, 255, 255, 255, 0, 4], report_task_management)),
    medium(&[0xa8, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::read),
    medium(&[0xaa, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write),
    medium(&[0xae, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::write_and_verify),
    medium(&[0xaf, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 0, 4], transfer::verify),
];

/// The command, if the unit has it and the initiator sent it whole.
pub(super) fn find(unit: &LogicalUnit, cdb: &Cdb) -> Result<&'static Entry, Sense> {
    let opcode = cdb.opcode();
    let mut known = COMMANDS.iter().filter(|entry| entry.opcode() == opcode);
    let Some(first) = known.next().filter(|entry| entry.is_offered(unit)) else {
        return Err(Sense::INVALID_COMMAND);
    };
    let entry = match first.action {
        None => first,
        Some(_) => {
            let asked = Some(cdb.byte(1) & 0x1f);
            let mut entries = std::iter::once(first).chain(known);
            entries.find(|entry| entry.action == asked).ok_or_else(|| cdb.wrong_bit(1, 4))?
        }
    };
    if cdb.sent() < cdb.len() {
        // The driver says that its commands are shorter than this one.
        return Err(cdb.wrong(u16::try_from(cdb.sent()).unwrap_or(0)));
    }
    let control = cdb.len() - 1;
    if cdb.bit(control, 2) {
        // NACA: there is no ACA condition (SAM-5 §5.3.2, NORMACA = 0).
        return Err(cdb.wrong_bit(u16::try_from(control).unwrap_or(0), 2));
    }
    Ok(entry)
}

/// Bytes of a command timeouts descriptor: none are known.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
fn report_opcodes(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    let timeouts = cdb.bit(2, 7);
    let (opcode, action) = (cdb.byte(3), cdb.be16(4));
    let offered = || COMMANDS.iter().filter(|entry| entry.is_offered(unit));
    let with_action = offered().any(|entry| entry.opcode() == opcode && entry.action.is_some());
    let known = offered().any(|entry| entry.opcode() == opcode);
    let by_action = match cdb.byte(2) & 7 {
        0 => return data_in(all_opcodes(offered(), timeouts), cdb.be32(6).into()),
        1 if with_action => return Err(cdb.wrong_bit(2, 2).into()),
        2 if known && !with_action => return Err(cdb.wrong_bit(2, 2).into()),
        1 => false,
        2 => true,
        3 => with_action,
        _ => return Err(cdb.wrong_bit(2, 2).into()),
    };
    let found = offered().find(|entry| {
        let asked = !by_action || entry.action.map(u16::from) == Some(action);
        entry.opcode() == opcode && asked
    });
    data_in(one_opcode(found, timeouts), cdb.be32(6).into())
}

fn all_opcodes<'a>(entries: impl Iterator<Item = &'a Entry>, timeouts: bool) -> Vec<u8> {
    const SERVACTV: u8 = 1;
    const CTDP: u8 = 2;
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| (entry.opcode(), entry.action));
    let mut answer = vec![0; 4];
    for entry in entries {
        let servactv = if entry.action.is_some() { SERVACTV } else { 0 };
        let mut descriptor = [0; 8];
        put(&mut descriptor, 0, &[entry.opcode(), 0, 0, entry.action.unwrap_or(0)]);
        put(&mut descriptor, 5, &[servactv | if timeouts { CTDP } else { 0 }]);
        put(&mut descriptor, 6, &len16(entry.usage.len()));
        answer.extend(descriptor);
        if timeouts {
            answer.extend(TIMEOUTS);
        }
    }
    let following = answer.len() - 4;
    put(&mut answer, 0, &len32(following));
    answer
}

fn one_opcode(entry: Option<&Entry>, timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 1;
    const BY_THE_STANDARD: u8 = 3;
    const CTDP: u8 = 0x80;
    let Some(entry) = entry else { return vec![0, NOT_SUPPORTED, 0, 0] };
    let mut answer = vec![0, BY_THE_STANDARD | if timeouts { CTDP } else { 0 }, 0, 0];
    put(&mut answer, 2, &len16(entry.usage.len()));
    answer.extend(entry.usage);
    if let Some(action) = entry.action {
        // The usage map has the service action as it is (SPC-4 §6.35.3).
        put(&mut answer, 5, &[action]);
    }
    if timeouts {
        answer.extend(TIMEOUTS);
    }
    answer
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36).
fn report_task_management(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    const ABORT_TASK: u8 = 0x80;
    const ABORT_TASK_SET: u8 = 0x40;
    const CLEAR_TASK_SET: u8 = 0x10;
    const LOGICAL_UNIT_RESET: u8 = 0x08;
    const QUERY_TASK: u8 = 0x04;
    const QUERY_TASK_SET: u8 = 0x02;
    const I_T_NEXUS_RESET: u8 = 0x01;
    let cdb = command.cdb;
    let allocation = cdb.be32(6);
    if allocation < 4 {
        return Err(cdb.wrong(6).into());
    }
    let first = ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | LOGICAL_UNIT_RESET | QUERY_TASK;
    let mut answer = vec![first, QUERY_TASK_SET | I_T_NEXUS_RESET, 0, 0];
    if cdb.bit(2, 7) {
        // REPD: no timeouts are known.
        put(&mut answer, 3, &[12]);
        answer.extend([0; 12]);
    }
    data_in(answer, allocation.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_maps_are_as_long_as_their_commands() {
        for entry in &COMMANDS {
            let cdb = Cdb::new(entry.usage);
            assert_eq!(entry.usage.len(), cdb.len(), "{:#x}", entry.opcode());
            let mask = entry.action.map_or(0, |_| 0x1f);
            assert_eq!(entry.usage[1] & mask, mask);
        }
    }

    #[test]
    fn no_command_is_there_twice() {
        let mut seen = Vec::new();
        for entry in &COMMANDS {
            let name = (entry.opcode(), entry.action);
            assert!(!seen.contains(&name), "{name:?}");
            seen.push(name);
        }
    }
}
