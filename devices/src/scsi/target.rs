//! A target: its units by logical unit number, and commands to numbers without a unit (SAM-5 §4.7,
//! SPC-4 §6.33).

use std::sync::Arc;

use super::cdb::{Cdb, opcode};
use super::command::{Command, Outcome};
use super::data_out::DataOut;
use super::inquiry::{decode_lun, encode_lun, inquiry_without_unit, report_luns};
use super::opcodes;
use super::power::sense_as_data;
use super::sense::Sense;
use super::unit::LogicalUnit;

/// A target.
#[derive(Clone, Default)]
pub struct Target {
    /// Logical unit numbers, ascending.
    luns: Vec<u16>,
    /// In the order of `luns`.
    units: Vec<Arc<LogicalUnit>>,
}

impl Target {
    /// The highest logical unit number.
    pub const MAX_LUN: u16 = 0x3fff;

    /// Adds a unit; `false` if its number is taken or too high.
    pub fn add(&mut self, lun: u16, unit: Arc<LogicalUnit>) -> bool {
        match self.luns.binary_search(&lun) {
            Err(position) if lun <= Self::MAX_LUN => {
                self.luns.insert(position, lun);
                self.units.insert(position, unit);
                true
            }
            _ => false,
        }
    }

    /// Removes the unit with a number.
    pub fn remove(&mut self, lun: u16) -> Option<Arc<LogicalUnit>> {
        let position = self.position(lun)?;
        self.luns.remove(position);
        Some(self.units.remove(position))
    }

    /// Index of the unit with a number among the units in order of their numbers.
    #[must_use]
    pub fn position(&self, lun: u16) -> Option<usize> {
        self.luns.binary_search(&lun).ok()
    }

    /// The unit with a number.
    #[must_use]
    pub fn unit(&self, lun: u16) -> Option<&Arc<LogicalUnit>> {
        self.units.get(self.position(lun)?)
    }

    /// All units with their numbers, in ascending order.
    pub fn units(&self) -> impl Iterator<Item = (u16, &Arc<LogicalUnit>)> {
        self.luns.iter().copied().zip(&self.units)
    }

    /// Decodes a single level LUN structure; `None` for another addressing method.
    #[must_use]
    pub fn decode_lun(bytes: [u8; 2]) -> Option<u16> {
        decode_lun(bytes)
    }

    /// Encodes a number as a single level LUN structure.
    #[must_use]
    pub fn encode_lun(lun: u16) -> [u8; 2] {
        encode_lun(lun)
    }

    /// Executes a command for the unit with a number, or for a number that could not be decoded.
    /// Does not access the medium.
    ///
    /// # Errors
    ///
    /// See [`Failure`](super::Failure).
    pub fn execute(&self, lun: Option<u16>, cdb: &Cdb, out: &(dyn DataOut + '_)) -> Outcome {
        let command = Command { cdb, out, luns: &self.luns };
        match lun.and_then(|lun| self.unit(lun)) {
            Some(unit) => opcodes::execute(unit, &command),
            None => without_unit(&command),
        }
    }
}

/// Commands to an incorrect logical unit number (SPC-4 §6.6.1, §6.33, §6.39).
fn without_unit(command: &Command<'_>) -> Outcome {
    match command.cdb.opcode() {
        opcode::INQUIRY => inquiry_without_unit(command.cdb),
        opcode::REPORT_LUNS => report_luns(None, command),
        opcode::REQUEST_SENSE => sense_as_data(Sense::NO_SUCH_UNIT, command.cdb),
        _ => Err(Sense::NO_SUCH_UNIT.into()),
    }
}
