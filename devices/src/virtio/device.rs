//! What a virtio device is, apart from its transport.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;

use vmm_sys_util::eventfd::EventFd;

use super::{ConfigChange, FaultReporter, Interrupt, Position, Queue, QueueError, Worker};

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

/// Why a device could not start although its driver said it may.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver laid out a queue that cannot be used.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: u16,
        /// What is wrong.
        source: QueueError,
    },
    /// The disk's engine could not be made.
    #[error(transparent)]
    Engine(#[from] ::block::OpenError),
    /// The host refused a thread.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[source] io::Error),
    /// The host refused something else.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// One queue at activation: the ring, the kick that comes in and the interrupt that goes out.
pub struct ActiveQueue {
    /// The queue's number.
    pub index: u16,
    /// The ring.
    pub queue: Queue,
    /// Signalled by the driver's notification; non-blocking.
    pub kick: Arc<EventFd>,
    /// Tells the driver of used buffers.
    pub interrupt: Interrupt,
    /// How another worker goes on with the queue after this one; nothing where a reset comes in between, and what is
    /// in flight need not be given back.
    pub hand_over: Option<HandOver>,
}

/// Where a worker that was asked to end says how far it came.
pub struct HandOver {
    /// Takes the position, once the worker touches the ring no more.
    pub position: SyncSender<Position>,
    /// Whether requests that wait for space on the host are reported as failed. Else they are owed.
    pub report_held: Arc<AtomicBool>,
}

/// Everything a device gets when its driver sets DRIVER_OK.
pub struct Activation {
    /// The negotiated features.
    pub features: u64,
    /// The queues the driver enabled, by number.
    pub queues: Vec<ActiveQueue>,
    /// How to ask for a reset.
    pub faults: FaultReporter,
}

/// A device model. Its registers are accessed by vCPU threads, one at a time, its queues by its
/// workers.
pub trait VirtioDevice: Send {
    /// What kind of device this is.
    fn device_type(&self) -> DeviceType;

    /// The name in the configuration, for the log.
    fn name(&self) -> &str;

    /// The features of the device itself; the transport adds its own.
    fn features(&self) -> u64;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration at `offset` (§4.1.4.6); bytes beyond it read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A number that changes with each change of the configuration that the device makes by itself
    /// (§4.1.4.3.1).
    fn config_generation(&self) -> u8 {
        0
    }

    /// Gives a device whose configuration may change the means to say so. Comes first of all.
    fn connect(&mut self, _changed: ConfigChange) {}

    /// Writes device configuration. Only what the device type declares writable changes.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver's choice of features was accepted (FEATURES_OK); before it reads configuration that
    /// depends on it.
    fn negotiated(&mut self, _features: u64) {}

    /// Starts the workers of the queues.
    ///
    /// # Errors
    ///
    /// Why not. Workers started so far have ended by then.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError>;

    /// The driver reset the device; all workers have ended.
    fn reset(&mut self) {}

    /// The machine ends: all workers have ended, now is the time to make data durable.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads `data.len()` bytes at `offset` of the little-endian structure `config`; zero beyond its end.
pub(super) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
}
