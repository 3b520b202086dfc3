//! A target: its units by their numbers, and what is said where there is none (SAM-5 §4.7, SPC-4 §6.33).

use std::sync::Arc;

use super::inquiry::{decode_lun, encode_lun, inquiry_without_unit, report_luns};
use super::opcodes::{INQUIRY, REPORT_LUNS, REQUEST_SENSE};
use super::power::sense_as_data;
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Cdb, Command, DataOut, Outcome};

/// See the module's documentation.
#[derive(Clone, Default)]
pub struct Target {
    /// Ascending; the units in the same order.
    luns: Vec<u16>,
    units: Vec<Arc<LogicalUnit>>,
}

impl Target {
    /// The highest number that a unit can have.
    pub const MAX_LUN: u16 = 0x3fff;

    /// Adds a unit under a number; `false` if the number is taken or too high.
    pub fn add(&mut self, lun: u16, unit: Arc<LogicalUnit>) -> bool {
        match self.luns.binary_search(&lun) {
            Err(place) if lun <= Self::MAX_LUN => {
                self.luns.insert(place, lun);
                self.units.insert(place, unit);
                true
            }
            _ => false,
        }
    }

    /// Takes the unit of a number away.
    pub fn remove(&mut self, lun: u16) -> Option<Arc<LogicalUnit>> {
        let place = self.position(lun)?;
        self.luns.remove(place);
        Some(self.units.remove(place))
    }

    /// Which of the units, counted in the order of their numbers, has this number.
    #[must_use]
    pub fn position(&self, lun: u16) -> Option<usize> {
        self.luns.binary_search(&lun).ok()
    }

    /// The unit of a number.
    #[must_use]
    pub fn unit(&self, lun: u16) -> Option<&Arc<LogicalUnit>> {
        self.units.get(self.position(lun)?)
    }

    /// All units with their numbers, ascending.
    pub fn units(&self) -> impl Iterator<Item = (u16, &Arc<LogicalUnit>)> {
        self.luns.iter().copied().zip(&self.units)
    }

    /// The number in a single level structure; `None` for any other addressing method.
    #[must_use]
    pub fn decode_lun(bytes: [u8; 2]) -> Option<u16> {
        decode_lun(bytes)
    }

    /// The single level structure of a number.
    #[must_use]
    pub fn encode_lun(lun: u16) -> [u8; 2] {
        encode_lun(lun)
    }

    /// What becomes of a command for the unit of a number, or for a number that cannot be decoded.
    ///
    /// # Errors
    ///
    /// The command fails without the medium having been asked.
    pub fn execute(&self, lun: Option<u16>, cdb: &Cdb, out: &(dyn DataOut + '_)) -> Outcome {
        let command = Command { cdb, out, luns: &self.luns };
        match lun.and_then(|lun| self.unit(lun)) {
            Some(unit) => unit.execute(&command),
            None => without_unit(&command),
        }
    }
}

/// SPC-4 §6.6.1, §6.33, §6.39 for an incorrect number.
fn without_unit(command: &Command<'_>) -> Outcome {
    match command.cdb.opcode() {
        INQUIRY => inquiry_without_unit(command.cdb),
        REPORT_LUNS => report_luns(None, command),
        REQUEST_SENSE => sense_as_data(Sense::NO_SUCH_UNIT, command.cdb),
        _ => Err(Sense::NO_SUCH_UNIT.into()),
    }
}
