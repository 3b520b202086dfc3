//! Interrupts from a worker to its driver, by eventfd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Value of a vector register for "no vector" (Virtio 1.2 §4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// An interrupt source, a queue or the device configuration, on the MSI-X vector that the driver
/// assigned to it. Signalling costs one `write(2)` to an eventfd and takes no lock.
#[derive(Clone)]
pub struct Interrupt {
    vectors: Arc<[Arc<EventFd>]>,
    vector: Arc<AtomicU16>,
}

impl Interrupt {
    /// A source that signals the entry of `vectors` whose index is in `vector` at that time.
    #[must_use]
    pub fn new(vectors: Arc<[Arc<EventFd>]>, vector: Arc<AtomicU16>) -> Self {
        Self { vectors, vector }
    }

    /// A source that always signals `event`.
    #[must_use]
    pub fn fixed(event: Arc<EventFd>) -> Self {
        Self::new(Arc::from([event]), Arc::new(AtomicU16::new(0)))
    }

    /// A source without a vector: it never signals.
    #[must_use]
    pub fn unassigned() -> Self {
        Self::new(Arc::from([]), Arc::new(AtomicU16::new(NO_VECTOR)))
    }

    /// Interrupts the driver if it assigned a vector.
    pub fn signal(&self) {
        let vector = self.vector.load(Ordering::Relaxed);
        if let Some(event) = self.vectors.get(usize::from(vector)) {
            // Fails only if the counter is full: the interrupt is then pending already.
            let _ = event.write(1);
        }
    }
}
