//! Commands about the state of the unit: REQUEST SENSE, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, SEND DIAGNOSTIC.

use super::attention::Attention;
use super::job::Job;
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Answer, Cdb, Command, Outcome, data_in, good};

/// REQUEST SENSE (SPC-4 §6.39): the oldest unit attention condition, which is told by that, or the unit's state.
pub(super) fn request_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = || if unit.is_stopped() { Sense::STOPPED } else { Sense::NONE };
    let sense = unit.take_attention().map_or_else(state, Attention::sense);
    sense_as_data(sense, command.cdb)
}

/// Sense data as what the command was after. The command tells the format.
pub(super) fn sense_as_data(sense: Sense, cdb: &Cdb) -> Outcome {
    data_in(sense.encode(cdb.bit(1, 0)), cdb.byte(4).into())
}

/// START STOP UNIT (SBC-3 §5.25). A unit stops when its cache is written, and starts at once.
pub(super) fn start_stop_unit(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.byte(4) >> 4 != 0 {
        return Err(cdb.wrong_bit(4, 7).into()); // There are no power conditions.
    }
    if cdb.bit(4, 1) {
        return Err(cdb.wrong_bit(4, 1).into()); // LOEJ: the medium does not come out.
    }
    let (start, no_flush) = (cdb.bit(4, 0), cdb.bit(4, 2));
    if start || no_flush {
        unit.set_stopped(!start);
        return good();
    }
    Ok(Answer::Work(Job::stop()))
}

/// PREVENT ALLOW MEDIUM REMOVAL (SBC-3 §5.11): the medium stays in any case.
pub(super) fn prevent_allow(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    match command.cdb.byte(4) & 3 {
        0 | 1 => good(),
        _ => Err(command.cdb.wrong_bit(4, 1).into()),
    }
}

/// SEND DIAGNOSTIC (SPC-4 §6.42): the default self-test, which is passed by a unit that answers.
pub(super) fn send_diagnostic(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.byte(1) >> 5 != 0 {
        return Err(cdb.wrong_bit(1, 7).into());
    }
    match cdb.be16(3) {
        0 => good(),
        _ => Err(cdb.wrong(3).into()),
    }
}
