//! Operations on eventfds that `vmm_sys_util` lacks: borrowing the descriptor, adopting one from
//! another process, and replacing the file behind one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmm_sys_util::eventfd::EventFd;

/// The event's file descriptor.
pub(crate) fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor and closes it only when dropped, which the lifetime
    // of the result excludes.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Makes an event of a descriptor that another process sent, and sets it non-blocking.
///
/// # Errors
///
/// The descriptor is not an eventfd: writes and waits could then have any effect.
pub(crate) fn adopt(file: File) -> io::Result<EventFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::other("the descriptor is not an eventfd"));
    }
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    // SAFETY: `into_raw_fd` gives up the only ownership of the descriptor.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// Makes `event` refer to the file of `with`, atomically for all threads that use `event`.
///
/// # Errors
///
/// The host's error.
pub(crate) fn replace(event: &EventFd, with: &EventFd) -> io::Result<()> {
    // SAFETY: both descriptors are open and stay with their owners. The kernel replaces the file
    // behind `event` in one step, so that no thread finds its descriptor closed.
    let number = unsafe { libc::dup3(with.as_raw_fd(), event.as_raw_fd(), libc::O_CLOEXEC) };
    if number == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_eventfds_are_adopted_and_they_do_not_block() {
        let file = |event: EventFd| {
            // SAFETY: `into_raw_fd` gives up the only ownership of the descriptor.
            unsafe { File::from_raw_fd(event.into_raw_fd()) }
        };
        let event = adopt(file(EventFd::new(0).unwrap())).unwrap();
        assert_eq!(event.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(adopt(File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn a_replaced_event_signals_the_other_file() {
        let [event, other] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        replace(&event, &other).unwrap();
        event.write(3).unwrap();
        assert_eq!(other.read().unwrap(), 3);
    }
}
