//! The virtio SCSI host (Virtio 1.2 §5.6): a controller, its targets, and their logical units.
//!
//! Queue 0 takes task management, queue 1 brings events, the others take commands. Each request queue has a worker of
//! its own, as for every storage protocol, and the worker an engine for each unit that it has I/O for. What a command
//! means is [`crate::scsi`]'s business.

mod books;
mod control_queue;
mod disk;
mod engines;
mod event_queue;
mod protocol;
mod request;
mod shared;
mod task;
mod tasks;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::block::Backend;

use self::control_queue::ControlQueue;
use self::engines::UnitEngines;
use self::event_queue::EventQueue;
use self::protocol::ScsiProtocol;
use self::request::{CDB_BYTES, SENSE_BYTES};
use self::shared::Shared;
use super::device::read_config_bytes;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceType, VirtioDevice, Worker, chain_worker,
};
use crate::scsi::{Attention, Identity};
use crate::storage::disk_control::DiskControl;
use crate::storage::queue_worker;

pub use self::shared::{Address, Leaving, NoPlace};

/// Entries of each request queue, and of the other two.
const QUEUE_SIZE: u16 = 256;
const SMALL_QUEUE_SIZE: u16 = 64;
/// Queues before the request queues.
const OTHER_QUEUES: u16 = 2;
/// The most segments of data in one request: what a queue holds less header and response.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The longest transfer that drivers should use, in sectors of 512 bytes.
const MAX_SECTORS: u32 = 0xffff;
/// Offsets of the fields that the driver may write (§5.6.4).
const SENSE_SIZE_OFFSET: u64 = 20;
const CDB_SIZE_OFFSET: u64 = 24;

/// Feature bits (§5.6.3).
mod feature {
    pub(super) const INOUT: u64 = 1 << 0;
    pub(super) const HOTPLUG: u64 = 1 << 1;
    pub(super) const CHANGE: u64 = 1 << 2;
}

/// A SCSI controller.
pub struct Scsi {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
}

impl Scsi {
    /// A controller called `name` in the log, with `queues` request queues and nothing attached.
    ///
    /// # Errors
    ///
    /// The host gives no event.
    pub fn new(name: &str, queues: u16) -> io::Result<Self> {
        let queues = usize::from(queues.max(1));
        let mut queue_sizes = vec![SMALL_QUEUE_SIZE; usize::from(OTHER_QUEUES)];
        queue_sizes.resize(queue_sizes.len() + queues, QUEUE_SIZE);
        Ok(Self { shared: Arc::new(Shared::new(name, queues)?), queue_sizes })
    }

    /// What attaches and detaches disks.
    #[must_use]
    pub fn bus(&self) -> ScsiBus {
        ScsiBus(Arc::clone(&self.shared))
    }

    /// The configuration structure (§5.6.4).
    fn config(&self) -> [u8; 36] {
        let queues = self.queue_sizes.len() - usize::from(OTHER_QUEUES);
        let load = |size: &std::sync::atomic::AtomicU32| size.load(Ordering::Acquire);
        let words = [
            u32::try_from(queues).unwrap_or(1),
            SEG_MAX,
            MAX_SECTORS,
            QUEUE_SIZE.into(),
            event_queue::EVENT_BYTES,
            load(&self.shared.sense_size),
            load(&self.shared.cdb_size),
            // max_channel, and max_target in the upper half.
            u32::from(self.shared.highest_target()) << 16,
            Address::MOST_LUN.into(),
        ];
        let mut config = [0; 36];
        for (place, word) in config.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        config
    }

    fn request_worker(
        &self,
        active: ActiveQueue,
        activation: &Activation,
    ) -> Result<Worker, ActivateError> {
        let queue = active.index - OTHER_QUEUES;
        let shared = Arc::clone(&self.shared);
        let inout = activation.features & feature::INOUT != 0;
        let Some(protocol) = ScsiProtocol::new(Arc::clone(&shared), queue, &active.kick, inout)
        else {
            let source = io::Error::other("there is no such request queue");
            return Err(ActivateError::Host { what: "serve a queue", source });
        };
        let kick = Arc::clone(&active.kick);
        queue_worker::spawn(
            format!("{}/q{queue}", self.shared.name),
            active,
            activation.faults.clone(),
            move |setup| Ok(UnitEngines::new(shared, setup, kick)),
            Arc::default(),
            protocol,
        )
    }
}

impl VirtioDevice for Scsi {
    fn device_type(&self) -> DeviceType {
        DeviceType::Scsi
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        feature::INOUT | feature::HOTPLUG | feature::CHANGE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let &[a, b, c, d] = data else { return };
        let value = u32::from_le_bytes([a, b, c, d]);
        match offset {
            SENSE_SIZE_OFFSET => self.shared.sense_size.store(value, Ordering::Release),
            CDB_SIZE_OFFSET => self.shared.cdb_size.store(value, Ordering::Release),
            _ => {}
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.shared.events.accept(features);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let mut workers: Vec<Worker> = Vec::with_capacity(activation.queues.len());
        let (name, shared) = (Arc::clone(&self.shared.name), &self.shared);
        for active in std::mem::take(&mut activation.queues) {
            let faults = activation.faults.clone();
            let spawned = match active.index {
                0 => {
                    let handler = ControlQueue::new(Arc::clone(shared));
                    chain_worker::spawn(format!("{name}/control"), active, faults, handler)
                }
                1 => {
                    let handler = EventQueue::new(Arc::clone(shared));
                    chain_worker::spawn(format!("{name}/events"), active, faults, handler)
                }
                _ => self.request_worker(active, &activation),
            };
            // On an error the workers started so far end as they are dropped.
            workers.push(spawned?);
        }
        Ok(workers)
    }

    fn reset(&mut self) {
        self.shared.sense_size.store(SENSE_BYTES, Ordering::Release);
        self.shared.cdb_size.store(CDB_BYTES, Ordering::Release);
        self.shared.events.forget();
        for disk in self.shared.map().disks() {
            disk.unit.reset(Attention::PowerOn);
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.shared.sync_all()
    }
}

/// What attaches disks to a controller and detaches them, before the guest starts and while it runs.
#[derive(Clone)]
pub struct ScsiBus(Arc<Shared>);

impl ScsiBus {
    /// Attaches a disk called `name` and tells the driver, if it is there. Returns the disk's controls.
    ///
    /// # Errors
    ///
    /// The address is taken, or there is none like it.
    pub fn attach(
        &self,
        address: Address,
        name: &str,
        identity: Identity,
        backend: Arc<dyn Backend>,
    ) -> Result<DiskControl, NoPlace> {
        let handle = self.0.attach(address, name, identity, backend)?;
        Ok(DiskControl(handle))
    }

    /// Detaches the disk of an address and tells the driver, if there is one. From now on commands find no such unit; those
    /// that are under way end as they would have, but that none waits for space on the host any more.
    #[must_use]
    pub fn detach(&self, address: Address) -> Option<Leaving> {
        self.0.detach(address)
    }
}
