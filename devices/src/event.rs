//! What the type of an event does not offer: borrowing its descriptor, taking one from another process,
//! and replacing what is behind one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmm_sys_util::eventfd::EventFd;

/// The event's file descriptor.
pub(crate) fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor and closes it only when dropped, which the borrow
    // in the returned lifetime excludes.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Makes an event of a descriptor that another process sent. From then on neither side blocks on it, unless the other
/// one changes that again.
///
/// # Errors
///
/// It is something else, on which a write or a wait could do anything.
pub(crate) fn adopt(file: File) -> io::Result<EventFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::other("the descriptor is not an eventfd"));
    }
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    // SAFETY: `into_raw_fd` gives up the only ownership of the descriptor.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// Lets the descriptor of `event` stand for what is behind `with`, at once for all threads that use it.
///
/// # Errors
///
/// The host refuses.
pub(crate) fn replace(event: &EventFd, with: &EventFd) -> io::Result<()> {
    // SAFETY: both descriptors are open, by their owners. `event` goes on to own its number, behind which the kernel puts
    // another file in one step, so that no thread finds it closed.
    let number = unsafe { libc::dup3(with.as_raw_fd(), event.as_raw_fd(), libc::O_CLOEXEC) };
    if number == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_events_are_adopted_and_they_do_not_block() {
        let file = |event: EventFd| {
            // SAFETY: `into_raw_fd` gives up the only ownership of the descriptor.
            unsafe { File::from_raw_fd(event.into_raw_fd()) }
        };
        let event = adopt(file(EventFd::new(0).unwrap())).unwrap();
        assert_eq!(event.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(adopt(File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn a_replaced_event_signals_elsewhere() {
        let [event, other] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        replace(&event, &other).unwrap();
        event.write(3).unwrap();
        assert_eq!(other.read().unwrap(), 3);
    }
}
