//! The kick descriptor, polled in the ring.
//!
//! The poll is multishot and edge-triggered: each signal of the eventfd posts one result, and the
//! counter need never be read. So a kick costs neither a `read` nor a new poll. A new engine on a
//! used eventfd starts with one spurious kick in return.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::ring::{Ring, RingResult, push_poll};

/// The user data of the poll; not a tag.
pub(super) const USER_DATA: u64 = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct KickPoll {
    fd: OwnedFd,
    is_signalled: bool,
    /// Why the poll ended, as an errno.
    failed: Option<i32>,
}

impl KickPoll {
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(super) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, is_signalled: false, failed: None })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Pushes the poll.
    pub(super) fn arm(&mut self, ring: &mut impl Ring) {
        if !push_poll(ring, self.fd.as_fd(), USER_DATA) {
            self.failed = Some(libc::ENOBUFS);
        }
    }

    /// Handles a result of the poll; arms it again after the last one.
    pub(super) fn handle_result(&mut self, result: RingResult, ring: &mut impl Ring) {
        if result.result < 0 {
            self.failed = Some(result.result.wrapping_neg());
            return;
        }
        self.is_signalled = true;
        if !result.more {
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
        self.is_signalled
    }

    /// Consumes the signal; returns whether there was one.
    pub(super) fn take(&mut self) -> bool {
        std::mem::take(&mut self.is_signalled)
    }
}
