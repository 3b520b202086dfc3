//! A virtio device, independent of its transport.

use std::io;

use crate::virtqueue::{ActiveQueue, ConfigChange, FaultReporter};
use crate::worker::{StartError, Worker};

/// Device types (Virtio 1.2 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// Network card (§5.1).
    Net = 1,
    /// Block device (§5.2).
    Block = 2,
    /// Entropy device (§5.4).
    Entropy = 4,
    /// SCSI host (§5.6).
    Scsi = 8,
}

/// Parameters of [`VirtioDevice::activate`].
pub struct Activation {
    /// The negotiated features.
    pub features: u64,
    /// The queues that the driver enabled, in order of their numbers.
    pub queues: Vec<ActiveQueue>,
    /// Requests a reset of the device.
    pub faults: FaultReporter,
}

impl Activation {
    /// Starts the worker of each queue. If one fails, dropping the others ends them.
    pub(super) fn start_workers(
        self,
        start: impl FnMut(ActiveQueue) -> Result<Worker, StartError>,
    ) -> Result<Vec<Worker>, StartError> {
        self.queues.into_iter().map(start).collect()
    }
}

/// A device model. vCPU threads access its registers, one at a time; workers serve its queues.
pub trait VirtioDevice: Send {
    /// The device type.
    fn device_type(&self) -> DeviceType;

    /// Name in the configuration, for the log.
    fn name(&self) -> &str;

    /// Features of the device type. The transport adds its own.
    fn features(&self) -> u64;

    /// Maximum size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device configuration at `offset` (§4.1.4.6); zeroes beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Changes with each change of the configuration that the driver did not make (§4.1.4.3.1).
    fn config_generation(&self) -> u8 {
        0
    }

    /// Provides the means to notify the driver of configuration changes. Called once, before all
    /// other methods that take `&mut self`.
    fn connect(&mut self, _changed: ConfigChange) {}

    /// Writes the device configuration. Only fields that the device type declares writable change.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Adopts the features that the driver selected (FEATURES_OK), before the driver reads
    /// configuration that depends on them.
    fn negotiated(&mut self, _features: u64) {}

    /// Starts the workers of the queues.
    ///
    /// # Errors
    ///
    /// A worker cannot start. Workers started before have ended.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, StartError>;

    /// Resets the device. All workers have ended.
    fn reset(&mut self) {}

    /// Makes data durable at the end of the machine. All workers have ended.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads `data.len()` bytes at `offset` of the configuration structure `config`; zeroes beyond its
/// end.
pub(super) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
}
