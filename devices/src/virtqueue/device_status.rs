//! The device status and ISR status registers, which the transport shares with the workers, and
//! what a device reports to its driver through them (Virtio 1.2 §2.1, §4.1.4.5).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ::block::LogLimit;

use crate::interrupt::Interrupt;

/// Bits of the device status (§2.1).
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
}

/// The ISR status bit of a configuration change (§4.1.4.5).
const ISR_CONFIG: u8 = 2;

/// Bounds the log: the driver can cause a fault at any time. One per second for all devices.
static FAULTS: LogLimit = LogLimit::once_per(Duration::from_secs(1));

/// The two registers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct DeviceStatus {
    status: Arc<AtomicU8>,
    isr: Arc<AtomicU8>,
}

impl DeviceStatus {
    /// Registers of a device whose driver is not visible here, such as a vhost-user device:
    /// DRIVER_OK is set.
    #[must_use]
    pub fn driver_ok() -> Self {
        Self { status: Arc::new(AtomicU8::new(status::DRIVER_OK)), ..Self::default() }
    }

    /// The device status.
    #[must_use]
    pub fn get(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets bits of the device status. Returns the status before.
    pub(crate) fn set(&self, bits: u8) -> u8 {
        self.status.fetch_or(bits, Ordering::AcqRel)
    }

    /// Clears both registers (§2.4.1).
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
    }

    /// Reads the ISR status, which clears it (§4.1.4.5.1).
    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }
}

/// Notifies the driver of a configuration change (§4.1.5.4).
#[derive(Clone)]
pub struct ConfigChange {
    status: DeviceStatus,
    config: Interrupt,
}

impl ConfigChange {
    /// Notifies through the configuration interrupt `config` while `status` has DRIVER_OK.
    #[must_use]
    pub fn new(status: DeviceStatus, config: Interrupt) -> Self {
        Self { status, config }
    }

    /// Notifies the driver. Without DRIVER_OK it does nothing: the driver then reads the
    /// configuration before it uses the device.
    pub fn notify(&self) {
        if self.status.get() & status::DRIVER_OK != 0 {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        // §4.1.4.5.1: the bit is set with MSI-X as well, and before the interrupt.
        self.status.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.config.signal();
    }
}

/// Requests a reset of the device after a fault of its driver or its engine (§2.1.2).
#[derive(Clone)]
pub struct FaultReporter {
    change: ConfigChange,
}

impl FaultReporter {
    /// Reports in `status` and through the configuration interrupt `config`.
    #[must_use]
    pub fn new(status: DeviceStatus, config: Interrupt) -> Self {
        Self { change: ConfigChange::new(status, config) }
    }

    /// Sets DEVICE_NEEDS_RESET and notifies the driver.
    pub fn needs_reset(&self, why: &dyn Display) {
        if let Some(suppressed) = FAULTS.check() {
            tracing::warn!(target: "virtio", suppressed, "device needs a reset: {why}");
        }
        let before = self.change.status.set(status::NEEDS_RESET);
        if before & status::DRIVER_OK != 0 {
            self.change.interrupt();
        }
    }
}
