//! Whether any engine of a disk reads or writes. Each engine has a flag of its own, so that setting it costs nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The flags of all engines of one disk.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    flags: Mutex<Vec<Weak<AtomicBool>>>,
}

impl Activity {
    /// The flag of a new engine, set by it and cleared here.
    pub(crate) fn join(&self) -> Arc<AtomicBool> {
        let flag = Arc::default();
        let mut flags = self.lock();
        flags.retain(|flag| flag.strong_count() > 0);
        flags.push(Arc::downgrade(&flag));
        flag
    }

    /// Whether a flag was set since the last call.
    pub(crate) fn take(&self) -> bool {
        let flags = self.lock();
        let live = flags.iter().filter_map(Weak::upgrade);
        // All are to be cleared, not only those up to the first.
        live.fold(false, |any, flag| flag.swap(false, Ordering::Relaxed) | any)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<AtomicBool>>> {
        // The list is whole between any two changes.
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
