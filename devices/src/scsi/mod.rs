//! A SCSI target with disks (SAM-5, SPC-4, SBC-3). Knows no virtio: a transport brings commands and buffers.
//!
//! [`Target::execute`] takes a command descriptor block and the state of a logical unit, and gives an
//! [`Outcome`]: bytes for the initiator, a failure with exact sense data, or a [`Job`] for the medium. It does no
//! I/O. A job names one request after the other for the unit's engine; the transport carries them out and
//! hands each result back, until the job says how the command ended.
//!
//! Any thread may execute commands on a unit at any time. Those that read and write take no lock.

mod attention;
mod bytes;
mod capacity;
mod cdb;
mod inquiry;
mod job;
mod lba_status;
mod log;
mod mode;
mod mode_select;
mod opcodes;
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
pub use job::{Data, Job, Next, Step};
pub use sense::{Key, Sense};
pub use target::Target;
pub use unit::{Identity, LogicalUnit};

/// Status codes (SAM-5 §5.3.1).
pub mod status {
    /// The command succeeded.
    pub const GOOD: u8 = 0x00;
    /// Sense data says what happened.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// A reservation stands against the command, or its key is another one.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// What the initiator sent beside the command.
pub trait DataOut {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from `at` on; `false` if there are fewer or they cannot be had.
    fn read(&self, at: u64, into: &mut [u8]) -> bool;
}

impl DataOut for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..into.len()));
        from.map(|from| into.copy_from_slice(from)).is_some()
    }
}

/// What is to be done for a command that was accepted.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Good {
        /// For the data-in buffer; no more than the command allows.
        data: Vec<u8>,
        /// Bytes of the data-out buffer that were used.
        taken: u64,
    },
    /// It needs the medium.
    Work(Job),
}

/// Why a command failed before anything was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
    /// The command wants more data than the initiator sent with it.
    Overrun,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// What becomes of a command.
pub type Outcome = Result<Answer, Failure>;

/// One command as its implementation sees it.
struct Command<'a> {
    cdb: &'a Cdb,
    out: &'a (dyn DataOut + 'a),
    /// The target's logical unit numbers, ascending.
    luns: &'a [u16],
}

impl Command<'_> {
    /// The parameter list of `len` bytes.
    fn parameters(&self, len: u64) -> Result<Vec<u8>, Failure> {
        // Lists are bounded by their length's sixteen bits, or by what the command takes.
        let len = usize::try_from(len).map_err(|_| Failure::Overrun)?;
        if self.out.len() < len as u64 {
            return Err(Failure::Overrun);
        }
        let mut list = vec![0; len];
        if self.out.read(0, &mut list) { Ok(list) } else { Err(Failure::Overrun) }
    }
}

/// Succeeds without data.
fn good() -> Outcome {
    Ok(Answer::Good { data: Vec::new(), taken: 0 })
}

/// Succeeds without data, after a parameter list of `taken` bytes.
fn good_after(taken: u64) -> Outcome {
    Ok(Answer::Good { data: Vec::new(), taken })
}

/// Succeeds with as much of `data` as the initiator makes room for.
fn data_in(mut data: Vec<u8>, allocation_bytes: u64) -> Outcome {
    data.truncate(usize::try_from(allocation_bytes).unwrap_or(usize::MAX));
    Ok(Answer::Good { data, taken: 0 })
}
