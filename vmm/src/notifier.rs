//! An eventfd by which one thread wakes another that waits for descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that is readable between [`notify`](Self::notify) and [`clear`](Self::clear).
/// Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(Arc<OwnedFd>);

impl Notifier {
    /// A descriptor that is not readable.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Makes the descriptor readable.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be written.
    pub(crate) fn notify(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Makes the descriptor unreadable.
    pub(crate) fn clear(&self) {
        // Fails if it is not readable, which is no error.
        let _: Result<usize, _> = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// The descriptor, for a device that notifies.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn clones_share_the_state() {
        let notifier = Notifier::new().unwrap();
        let is_readable = || {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(&notifier, PollFlags::IN)], Some(&now)).unwrap() == 1
        };
        assert!(!is_readable());
        notifier.clone().notify().unwrap();
        notifier.notify().unwrap();
        assert!(is_readable());
        notifier.clear();
        assert!(!is_readable());
        notifier.clear();
    }
}
