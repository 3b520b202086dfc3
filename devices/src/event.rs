//! Borrowing the descriptor of an event, which its type does not offer.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The event's file descriptor.
pub(crate) fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor and closes it only when dropped, which the borrow
    // in the returned lifetime excludes.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
