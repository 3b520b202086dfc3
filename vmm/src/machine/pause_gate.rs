//! Where vCPUs wait while the machine is paused.
//!
//! vCPU threads pass it before each entry into the guest; the control thread closes and opens it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A gate that all vCPUs of a machine pass.
#[derive(Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    parked: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Waits while the gate is closed. Calls `on_park` first, if it is.
    pub(crate) fn pass(&self, on_park: impl FnOnce()) {
        if !self.is_closed() {
            return;
        }
        on_park();
        let mut parked = self.lock();
        *parked += 1;
        while self.is_closed() {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
    }

    /// From now on those who come wait.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Lets all go on.
    pub(crate) fn open(&self) {
        // Under the lock, or one who is about to wait misses it.
        let _parked = self.lock();
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether those who come wait.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// How many wait.
    pub(crate) fn parked(&self) -> usize {
        *self.lock()
    }

    /// A count is whole also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_waits_at_an_open_gate() {
        let gate = Gate::default();
        gate.pass(|| panic!("parked"));
        gate.close();
        gate.open();
        gate.pass(|| panic!("parked"));
    }

    #[test]
    fn all_wait_at_a_closed_gate_and_go_on_when_it_opens() {
        let (gate, parking) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            gate.close();
            let (gate, parking) = (&gate, &parking);
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        gate.pass(|| {
                            parking.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
                while gate.parked() < 3 {
                    thread::yield_now();
                }
                gate.open();
            });
            assert_eq!(gate.parked(), 0);
        }
        assert_eq!(parking.load(Ordering::Relaxed), 300);
    }
}
