//! How the machine ended: set by the first thread that ends it, read by the control thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The guest's kernel has reported a panic, and may have more to print.
    is_panicked: AtomicBool,
    notifier: Notifier,
}

impl EndingCell {
    /// The machine has not ended.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            ending: OnceLock::new(),
            is_panicked: AtomicBool::new(false),
            notifier: Notifier::new()?,
        })
    }

    /// Ends the machine, unless it has ended. How a guest stops after a panic is part of the panic.
    pub(crate) fn set(&self, ending: Ending) {
        let ending = match ending {
            Ending::Exit(Exit::PoweredOff | Exit::Rebooted | Exit::TripleFault)
                if self.is_panicked() =>
            {
                Ending::Exit(Exit::Panicked)
            }
            ending => ending,
        };
        if self.ending.set(ending).is_ok() {
            self.notify();
        }
    }

    /// Tells the control thread that the guest's kernel has reported a panic.
    pub(super) fn set_panicked(&self) {
        if !self.is_panicked.swap(true, Ordering::AcqRel) {
            self.notify();
        }
    }

    fn notify(&self) {
        if let Err(error) = self.notifier.notify() {
            tracing::error!(%error, "cannot notify the control thread that the machine ended");
        }
    }

    /// Whether the guest's kernel has reported a panic.
    pub(crate) fn is_panicked(&self) -> bool {
        self.is_panicked.load(Ordering::Acquire)
    }

    /// Makes the descriptor unreadable until the next change.
    pub(crate) fn clear(&self) {
        self.notifier.clear();
    }

    /// How the machine ended, if it has.
    pub(crate) fn get(&self) -> Option<&Ending> {
        self.ending.get()
    }
}

impl AsRawFd for EndingCell {
    /// Readable after a panic, and once the machine has ended.
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

    #[test]
    fn a_reboot_after_a_panic_is_a_panic() {
        let cell = EndingCell::new().unwrap();
        cell.set_panicked();
        assert!(cell.is_panicked());
        assert_eq!(cell.get(), None, "the guest may have more to print");
        cell.set(Ending::Exit(Exit::Rebooted));
        assert_eq!(cell.get(), Some(&Ending::Exit(Exit::Panicked)));
        let cell = EndingCell::new().unwrap();
        cell.set_panicked();
        cell.set(Ending::Exit(Exit::Stopped));
        assert_eq!(cell.get(), Some(&Ending::Exit(Exit::Stopped)), "not by the guest");
    }
}
