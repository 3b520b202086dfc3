//! How the machine ended. Told by whichever thread learns it first, awaited by the control thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

use crate::exit::Exit;
use crate::kvm::KvmFailure;

/// The end of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As the guest or the user wanted it.
    Exit(Exit),
    /// KVM cannot go on.
    Failure(KvmFailure),
}

/// A place for one [`Ending`]; the first one stays.
pub(crate) struct EndingCell {
    ending: OnceLock<Ending>,
    event: OwnedFd,
}

impl EndingCell {
    /// An empty place.
    ///
    /// # Errors
    ///
    /// When the host gives no event.
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { ending: OnceLock::new(), event })
    }

    /// Ends the machine, unless it already ended.
    pub(crate) fn set(&self, ending: Ending) {
        if self.ending.set(ending).is_ok()
            && let Err(error) = rustix::io::write(&self.event, &1_u64.to_ne_bytes())
        {
            tracing::error!(%error, "the control thread does not learn that the machine ended");
        }
    }

    /// How the machine ended, if it did.
    pub(crate) fn get(&self) -> Option<&Ending> {
        self.ending.get()
    }
}

impl AsFd for EndingCell {
    /// Readable once the machine has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_stays() {
        let cell = EndingCell::new().unwrap();
        assert_eq!(cell.get(), None);
        cell.set(Ending::Exit(Exit::Panicked));
        cell.set(Ending::Exit(Exit::Rebooted));
        assert_eq!(cell.get(), Some(&Ending::Exit(Exit::Panicked)));
        let mut count = [0; 8];
        rustix::io::read(&cell.event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
