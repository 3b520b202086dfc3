//! The kick descriptor, polled in the ring.
//!
//! The poll is multishot and edge-triggered: each signal of the eventfd posts one entry, and the
//! counter need never be read. So a kick costs neither a `read` nor a new poll; the price is that a
//! new engine on a used eventfd starts with one spurious kick.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{opcode, types};

use super::ring::{Answer, Ring};

/// No request's tag.
pub(super) const USER_DATA: u64 = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Kick {
    fd: OwnedFd,
    signalled: bool,
    /// Why the poll ended, as an errno.
    failed: Option<i32>,
}

impl Kick {
    /// # Errors
    ///
    /// The host gives no more descriptors.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, signalled: false, failed: None })
    }

    /// Pushes the poll.
    pub(super) fn arm(&mut self, ring: &mut impl Ring) {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let entry = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), events)
            .multi(true)
            .build()
            .user_data(USER_DATA);
        // SAFETY: the entry names no memory, and the ring holds the file once it is submitted.
        if !unsafe { ring.push(&entry) } {
            self.failed = Some(libc::ENOBUFS);
        }
    }

    /// Takes an answer of the poll; arms it again when it was the last.
    pub(super) fn settle(&mut self, answer: Answer, ring: &mut impl Ring) {
        if answer.result < 0 {
            self.failed = Some(answer.result.wrapping_neg());
            return;
        }
        self.signalled = true;
        if !answer.more {
            self.arm(ring);
        }
    }

    /// # Errors
    ///
    /// The kernel refused or ended the poll.
    pub(super) fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    pub(super) fn is_signalled(&self) -> bool {
        self.signalled
    }

    /// Whether there was a signal since the last call.
    pub(super) fn take(&mut self) -> bool {
        std::mem::take(&mut self.signalled)
    }
}
