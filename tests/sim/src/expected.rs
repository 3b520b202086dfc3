//! Requests of either device.

use super::block_request::Expectation;
use super::oracle::OpId;
use super::scsi_command::Command;

/// A request as its driver knows it.
pub(super) enum Expected {
    Block(Expectation),
    Scsi(Command),
}

impl Expected {
    /// The number of its disk.
    pub(super) fn unit(&self) -> usize {
        match self {
            Self::Block(_) => 0,
            Self::Scsi(command) => command.unit,
        }
    }

    /// The changes of the disk by the request.
    pub(super) fn changes(&self) -> Vec<OpId> {
        match self {
            Self::Block(Expectation::Change { op, .. }) => vec![*op],
            Self::Block(_) => Vec::new(),
            Self::Scsi(command) => command.changes(),
        }
    }
}
