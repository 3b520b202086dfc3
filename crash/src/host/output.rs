//! The output of a check: its last part, from a pipe that is never waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// Bytes of output that are kept.
const KEPT: usize = 64 << 10;
/// Most bytes that are read at the end of a check, whose processes are gone or are being killed.
const REST: usize = 1 << 20;

/// The end of the pipe that is read, and what was.
pub(super) struct CheckOutput {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    is_open: bool,
}

impl CheckOutput {
    /// A new pipe, and its other end.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (pipe, other) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok((Self { pipe, bytes: Vec::new(), is_open: true }, other))
    }

    /// The pipe, while there may be more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.is_open.then(|| self.pipe.as_fd())
    }

    /// Reads what there is, up to `most` bytes.
    fn read(&mut self, most: usize) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut total = 0;
        while total < most && self.is_open {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => self.is_open = false,
                Ok(len) => {
                    total += len;
                    self.bytes.extend_from_slice(buffer.get(..len).unwrap_or_default());
                    self.forget();
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Drops what is too old, rarely.
    fn forget(&mut self) {
        if self.bytes.len() >= 2 * KEPT {
            self.bytes.drain(..self.bytes.len() - KEPT);
        }
    }

    /// Reads what there is now.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn read_some(&mut self) -> io::Result<()> {
        self.read(KEPT)
    }

    /// The last part of the output.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn finish(mut self) -> io::Result<String> {
        self.read(REST)?;
        let start = self.bytes.len().saturating_sub(KEPT);
        let last = self.bytes.get(start..).unwrap_or_default();
        Ok(String::from_utf8_lossy(last).into_owned())
    }
}
