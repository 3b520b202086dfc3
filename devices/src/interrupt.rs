//! What a worker can tell the driver: "look at the ring" and "reset me".

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;

use ::block::LogLimit;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::status;

/// The ISR status bit of a configuration change (Virtio 1.2 §4.1.4.5).
const ISR_CONFIG: u8 = 2;
/// The value of a vector register that stands for "none" (Virtio 1.2 §4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// One source of interrupts, a queue or the configuration, on whichever MSI-X vector the driver
/// assigned to it. Signalling takes one `write(2)` of an eventfd and no lock.
#[derive(Clone)]
pub struct Interrupt {
    vectors: Arc<[Arc<EventFd>]>,
    vector: Arc<AtomicU16>,
}

impl Interrupt {
    /// The source that uses whichever of `vectors` the number in `vector` says, now and later.
    #[must_use]
    pub fn new(vectors: Arc<[Arc<EventFd>]>, vector: Arc<AtomicU16>) -> Self {
        Self { vectors, vector }
    }

    /// Interrupts the driver, if it assigned a vector.
    pub fn signal(&self) {
        let vector = self.vector.load(Ordering::Relaxed);
        if let Some(event) = self.vectors.get(usize::from(vector)) {
            // Fails only if the counter is full, in which case the interrupt is pending already.
            let _ = event.write(1);
        }
    }
}

/// How a device tells its driver that its configuration changed (Virtio 1.2 §4.1.5.4).
#[derive(Clone)]
pub struct ConfigChange {
    status: Arc<AtomicU8>,
    isr: Arc<AtomicU8>,
    config: Interrupt,
}

impl ConfigChange {
    /// Tells through the configuration interrupt, which the ISR status announces, once `status` has
    /// DRIVER_OK.
    #[must_use]
    pub fn new(status: Arc<AtomicU8>, isr: Arc<AtomicU8>, config: Interrupt) -> Self {
        Self { status, isr, config }
    }

    /// Tells the driver, if it is ready; one that is not will read the configuration anyway.
    pub fn notify(&self) {
        if self.status.load(Ordering::Acquire) & status::DRIVER_OK != 0 {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        // §4.1.4.5.1: with MSI-X too, and before the interrupt.
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.config.signal();
    }
}

/// What a driver can bring about at will must not flood the log: one fault a second is named, of all devices together.
static FAULTS: LogLimit = LogLimit::once_per(Duration::from_secs(1));

/// How a worker makes its device ask for a reset (Virtio 1.2 §2.1.2).
#[derive(Clone)]
pub struct FaultReporter {
    change: ConfigChange,
}

impl FaultReporter {
    /// Reports into the device's status register and through its configuration interrupt, which the
    /// ISR status announces.
    #[must_use]
    pub fn new(status: Arc<AtomicU8>, isr: Arc<AtomicU8>, config: Interrupt) -> Self {
        Self { change: ConfigChange::new(status, isr, config) }
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    pub fn needs_reset(&self, why: &dyn Display) {
        if let Some(suppressed) = FAULTS.check() {
            tracing::warn!(target: "virtio", suppressed, "device needs a reset: {why}");
        }
        let before = self.change.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        if before & status::DRIVER_OK != 0 {
            self.change.interrupt();
        }
    }
}
