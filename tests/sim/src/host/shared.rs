//! The host of a disk, as its engines and the schedule share it.

use std::sync::{Arc, Mutex, MutexGuard};

use super::Host;

/// See the module's documentation. Uncontended: a schedule has one thread.
#[derive(Clone)]
pub(crate) struct SharedHost(Arc<Mutex<Host>>);

impl SharedHost {
    pub(crate) fn new(host: Host) -> Self {
        Self(Arc::new(Mutex::new(host)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap()
    }
}
