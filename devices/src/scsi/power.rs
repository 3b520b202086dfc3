//! Commands about the state of the unit: REQUEST SENSE, START STOP UNIT, PREVENT ALLOW MEDIUM
//! REMOVAL, SEND DIAGNOSTIC.

use super::attention::Attention;
use super::cdb::Cdb;
use super::command::{Answer, Command, Outcome, data_in, good};
use super::job::Job;
use super::sense::Sense;
use super::unit::LogicalUnit;

/// REQUEST SENSE (SPC-4 §6.39): reports the oldest unit attention condition, or the unit's state.
pub(super) fn request_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = || if unit.is_stopped() { Sense::STOPPED } else { Sense::NONE };
    let sense = unit.take_attention().map_or_else(state, Attention::sense);
    sense_as_data(sense, command.cdb)
}

/// Sense data as the data of a REQUEST SENSE, in the format that its CDB selects.
pub(super) fn sense_as_data(sense: Sense, cdb: &Cdb) -> Outcome {
    data_in(sense.encode(cdb.bit(1, 0)), cdb.byte(4).into())
}

/// START STOP UNIT (SBC-3 §5.25). A unit stops after a flush and starts immediately.
pub(super) fn start_stop_unit(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.byte(4) >> 4 != 0 {
        return Err(cdb.invalid_bit(4, 7).into()); // POWER CONDITION: none is supported
    }
    if cdb.bit(4, 1) {
        return Err(cdb.invalid_bit(4, 1).into()); // LOEJ: the medium is not removable
    }
    let (start, no_flush) = (cdb.bit(4, 0), cdb.bit(4, 2));
    if start || no_flush {
        unit.set_stopped(!start);
        return good();
    }
    Ok(Answer::Work(Job::stop()))
}

/// PREVENT ALLOW MEDIUM REMOVAL (SBC-3 §5.11): the medium is not removable.
pub(super) fn prevent_allow(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    match command.cdb.byte(4) & 3 {
        0 | 1 => good(),
        _ => Err(command.cdb.invalid_bit(4, 1).into()),
    }
}

/// SEND DIAGNOSTIC (SPC-4 §6.42): the default self-test, which always passes.
pub(super) fn send_diagnostic(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.byte(1) >> 5 != 0 {
        return Err(cdb.invalid_bit(1, 7).into());
    }
    match cdb.be16(3) {
        0 => good(),
        _ => Err(cdb.invalid(3).into()),
    }
}
