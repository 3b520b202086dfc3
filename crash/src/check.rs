//! The contract between the search for states and those who check them.

use std::io;
use std::sync::Arc;

/// A disk as a power cut could have left it, for one check. What the check writes is kept until its
/// end, and is seen by no other.
pub trait CheckedDisk: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from byte `at`. Blocks that are read decide which other states the check
    /// would accept as well.
    ///
    /// # Errors
    ///
    /// The range is not within the disk (`EINVAL`), or the host's error.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Fills the start of `buffer` with the whole blocks of 4096 bytes from byte `at` that are the
    /// same in all states, and that the check did not write. Returns their bytes: 0 if `at` is not
    /// the start of such a block. They are not noted as read.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn read_same(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let _ = (at, buffer);
        Ok(0)
    }

    /// Writes `data` at byte `at`.
    ///
    /// # Errors
    ///
    /// As [`CheckedDisk::read`].
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Zeroes `len` bytes from byte `at`.
    ///
    /// # Errors
    ///
    /// As [`CheckedDisk::read`].
    fn zero(&self, at: u64, len: u64) -> io::Result<()>;

    /// The marks that were made before the power cut, oldest first, a line for each.
    fn marks(&self) -> String;
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It accepts the disk.
    Passed,
    /// It does not.
    Failed(Failure),
}

/// How a check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its end, as "exit status 4", "signal 11" or "no end within 60 s".
    pub end: String,
    /// The last part of its output.
    pub output: String,
}

/// How the end of a check that took too long begins.
const LATE: &str = "no end within";

impl Failure {
    /// Whether the check was ended as it took too long.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.end.starts_with(LATE)
    }

    /// Whether the check was ended before it decided: it may have read less than it would have.
    pub(crate) fn is_cut_short(&self) -> bool {
        let ends = [LATE, "signal", "the guest ended"];
        ends.iter().any(|end| self.end.starts_with(end))
    }
}

/// Why a check was not made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The host failed.
    #[error("cannot {what}: {source}")]
    Host {
        /// The operation that failed, as "cannot ...".
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The exploration was stopped.
    #[error("the check was stopped")]
    Stopped,
}

/// Makes checks, several at a time.
pub trait Checker: Sync {
    /// Checks a disk.
    ///
    /// # Errors
    ///
    /// The check could not be made, whatever the disk has.
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError>;
}
