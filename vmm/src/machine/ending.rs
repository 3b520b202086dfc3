//! How the machine ended: set by the first thread that ends it, read by the control thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use crate::exit::Exit;
use crate::kvm::KvmFailure;
use crate::notifier::Notifier;

/// The end of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest or the user ended it.
    Exit(Exit),
    /// KVM cannot continue.
    Failure(KvmFailure),
}

/// A place for one [`Ending`]. The first one stays.
pub(crate) struct EndingCell {
    ending: OnceLock<Ending>,
    notifier: Notifier,
}

impl EndingCell {
    /// The machine has not ended.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { ending: OnceLock::new(), notifier: Notifier::new()? })
    }

    /// Ends the machine, unless it has ended.
    pub(crate) fn set(&self, ending: Ending) {
        if self.ending.set(ending).is_ok()
            && let Err(error) = self.notifier.notify()
        {
            tracing::error!(%error, "cannot notify the control thread that the machine ended");
        }
    }

    /// How the machine ended, if it has.
    pub(crate) fn get(&self) -> Option<&Ending> {
        self.ending.get()
    }
}

impl AsRawFd for EndingCell {
    /// Readable once the machine has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.notifier.as_raw_fd()
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
        rustix::io::read(&cell.notifier, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "notified once");
    }
}
