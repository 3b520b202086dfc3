//! A command as its implementation receives it, and its outcome.

use zerocopy::{Immutable, IntoBytes};

use super::cdb::Cdb;
use super::data_out::DataOut;
use super::failure::Failure;
use super::job::Job;
use super::lba_status::LbaStatusQuery;

/// Status codes (SAM-5 §5.3.1).
pub mod status {
    /// The command succeeded.
    pub const GOOD: u8 = 0x00;
    /// The command failed; sense data has the reason.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// The command conflicts with a reservation, or its reservation key is wrong.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// The answer to a command that was accepted.
#[derive(Debug)]
pub enum Answer {
    /// The command is complete.
    Good {
        /// Data for the data-in buffer, at most the allocation length.
        data: Vec<u8>,
        /// Bytes of the data-out buffer that were used.
        taken: u64,
    },
    /// The command accesses the medium.
    Work(Job),
    /// The command depends on the extents of the host.
    Query(LbaStatusQuery),
}

/// The outcome of executing a command.
pub type Outcome = Result<Answer, Failure>;

/// One command.
pub(super) struct Command<'a> {
    pub(super) cdb: &'a Cdb,
    pub(super) out: &'a (dyn DataOut + 'a),
    /// Logical unit numbers of the target, ascending.
    pub(super) luns: &'a [u16],
}

impl Command<'_> {
    /// The parameter list of `len` bytes, a length that the caller has bounded.
    pub(super) fn parameters(&self, len: u64) -> Result<Vec<u8>, Failure> {
        let len = usize::try_from(len).map_err(|_| Failure::Overrun)?;
        if self.out.len() < len as u64 {
            return Err(Failure::Overrun);
        }
        let mut list = vec![0; len];
        if self.out.read(0, &mut list) { Ok(list) } else { Err(Failure::Overrun) }
    }
}

/// GOOD without data.
pub(super) fn good() -> Outcome {
    good_after(0)
}

/// GOOD without data, after a parameter list of `taken` bytes.
pub(super) fn good_after(taken: u64) -> Outcome {
    Ok(Answer::Good { data: Vec::new(), taken })
}

/// GOOD with `data`, truncated to the allocation length.
pub(super) fn data_in(mut data: Vec<u8>, allocation_bytes: u64) -> Outcome {
    data.truncate(usize::try_from(allocation_bytes).unwrap_or(usize::MAX));
    Ok(Answer::Good { data, taken: 0 })
}

/// A header followed by its data.
pub(super) fn with_header(header: &(impl IntoBytes + Immutable), data: &[u8]) -> Vec<u8> {
    [header.as_bytes(), data].concat()
}
