//! A SCSI target with disks (SAM-5, SPC-4, SBC-3), independent of its transport.
//!
//! [`Target::execute`] takes a command descriptor block and returns an [`Outcome`]: data for the
//! initiator, a failure with exact sense data, a [`Job`] for the medium, or an [`LbaStatusQuery`]
//! for the host. It does no I/O and never waits for the host. A job names one operation after
//! another for the unit's engine; the transport executes each and passes its result back until the
//! job ends the command. A query runs on a thread of the disk.
//!
//! Any thread may execute commands on a unit at any time. Reads and writes take no lock.

mod attention;
mod bytes;
mod capacity;
mod cdb;
mod command;
mod data_out;
mod failure;
mod get_lba_status;
mod host_queries;
mod identity;
mod inquiry;
mod job;
mod lba_status;
mod log;
mod mode;
mod mode_select;
mod opcodes;
mod persistent_reserve;
mod power;
mod provisioning;
mod reservations;
mod scratch;
mod sense;
mod target;
#[cfg(test)]
mod tests;
mod transfer;
mod unit;
mod vpd;

pub use attention::Attention;
pub use cdb::Cdb;
pub use command::{Answer, Outcome, status};
pub use data_out::DataOut;
pub use failure::Failure;
pub use host_queries::AllocationQuery;
pub use identity::Identity;
pub use job::{Data, Job, Next, Step};
pub use lba_status::LbaStatusQuery;
pub use sense::{Key, Sense};
pub use target::Target;
pub use unit::LogicalUnit;
