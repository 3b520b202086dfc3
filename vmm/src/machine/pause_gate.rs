//! The gate at which vCPUs park while the machine is paused.
//!
//! vCPU threads pass it before each entry into the guest. The control thread closes and opens it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A gate for all vCPUs of a machine.
#[derive(Default)]
pub(crate) struct PauseGate {
    closed: AtomicBool,
    parked: Mutex<usize>,
    changed: Condvar,
}

impl PauseGate {
    /// Parks while the gate is closed, after a call of `on_park`.
    pub(super) fn pass(&self, on_park: impl FnOnce()) {
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

    /// Makes vCPUs park when they arrive.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Releases all parked vCPUs.
    pub(super) fn open(&self) {
        // Under the lock, or a vCPU between its check and its wait misses the wakeup.
        let _parked = self.lock();
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the gate is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Number of parked vCPUs.
    pub(super) fn parked(&self) -> usize {
        *self.lock()
    }

    /// A counter is always consistent, so a poisoned lock is usable.
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
    fn an_open_gate_parks_no_vcpu() {
        let gate = PauseGate::default();
        gate.pass(|| panic!("parked"));
        gate.close();
        gate.open();
        gate.pass(|| panic!("parked"));
    }

    #[test]
    fn a_closed_gate_parks_all_until_it_opens() {
        let (gate, parking) = (Arc::new(PauseGate::default()), Arc::new(AtomicUsize::new(0)));
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
