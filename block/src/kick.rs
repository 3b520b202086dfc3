//! The kick of an engine, held by the parts of its disk that wake it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A handle on the eventfd of an engine. Clones are of the same engine.
#[derive(Clone, Debug)]
pub(crate) struct Kick(Arc<OwnedFd>);

impl Kick {
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(crate) fn new(eventfd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd.try_clone_to_owned()?)))
    }

    /// Whether both are of the same engine.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its eventfd.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Wakes the engine.
    pub(crate) fn signal(&self) {
        // Fails only if the counter is full, and then the descriptor is readable.
        if let Err(error) = rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "cannot wake an engine");
        }
    }
}
