//! The virtio block device (Virtio 1.2 §5.2).

mod control;
mod protocol;
mod request;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::block::{Backend, EngineSetup, Geometry, IoEngine, LogLimit, OpenError};

use self::control::{Capacity, Shared};
use self::protocol::BlockProtocol;
use self::request::{ID_BYTES, Limits, SECTOR_BYTES};
use super::device::read_config_bytes;
use super::{
    ActivateError, Activation, ActiveQueue, ConfigChange, DeviceType, FaultReporter, VirtioDevice,
    Worker,
};
use crate::WriteCache;
use crate::storage::disk_control::DiskControl;
use crate::storage::queue_worker::{self, Protocol, QueueWorker};
use crate::storage::stats::QueueStats;

pub use self::request::Status;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// The most segments of data in one request: what a queue holds less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The longest discard or zeroing in one request, 2 GiB in sectors.
const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Offset of the one field that the driver may write (§5.2.4).
pub(super) const WRITEBACK_OFFSET: u64 = 32;

/// Feature bits (§5.2.3).
pub(super) mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(in crate::virtio) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(in crate::virtio) const CONFIG_WCE: u64 = 1 << 11;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

type Made = Result<Box<dyn IoEngine>, OpenError>;

/// A block device over a backend.
pub struct Block {
    shared: Arc<Shared>,
    id: [u8; ID_BYTES],
    queue_sizes: Vec<u16>,
}

impl Block {
    /// A device called `name` in the log, with `queues` queues, that answers GET_ID with `serial`
    /// (its first 20 bytes).
    #[must_use]
    pub fn new(name: &str, serial: &str, queues: u16, backend: Arc<dyn Backend>) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shared = Shared {
            name: name.into(),
            capacity: Capacity::new(backend.geometry().capacity),
            write_cache: WriteCache::new(backend.cache_mode()),
            cache_switchable: AtomicBool::new(false),
            cache_stays_on: LogLimit::default(),
            backend,
            stats: (0..queues.max(1)).map(|_| Arc::default()).collect(),
            changed: Mutex::new(None),
        };
        let queue_sizes = vec![QUEUE_SIZE; usize::from(queues.max(1))];
        Self { shared: Arc::new(shared), id, queue_sizes }
    }

    /// The controls of this disk.
    #[must_use]
    pub fn control(&self) -> DiskControl {
        DiskControl(self.shared.clone())
    }

    /// What the queues have done, by queue. Counts on through resets.
    #[must_use]
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        &self.shared.stats
    }

    /// Takes note of what the driver accepted.
    pub fn negotiated(&self, features: u64) {
        // A driver that does not flush gets durable writes (§5.2.5.2, §5.2.6.2).
        if features & feature::FLUSH == 0 {
            self.shared.write_cache.switch_off();
        }
        let switch = feature::FLUSH | feature::CONFIG_WCE;
        self.shared.cache_switchable.store(features & switch == switch, Ordering::Release);
    }

    /// Makes the worker of one queue without a thread for it, as the simulator in `tests/` needs it.
    ///
    /// # Errors
    ///
    /// When the host refuses the engine.
    pub fn worker(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
    ) -> Result<QueueWorker<impl Protocol + use<>>, ActivateError> {
        let stats = self.stats_of(active.index);
        QueueWorker::new(active, faults, self.engine(), stats, self.protocol())
    }

    /// Makes the engine of a queue on its worker's thread.
    fn engine(&self) -> impl FnOnce(&EngineSetup<'_>) -> Made + Send + use<> {
        let backend = Arc::clone(&self.shared.backend);
        move |setup| backend.engine(setup)
    }

    fn protocol(&self) -> BlockProtocol {
        BlockProtocol { limits: self.limits(), id: self.id, shared: Arc::clone(&self.shared) }
    }

    fn stats_of(&self, queue: u16) -> Arc<QueueStats> {
        self.shared.stats.get(usize::from(queue)).cloned().unwrap_or_default()
    }

    /// The configuration structure (§5.2.4).
    fn config(&self) -> [u8; 60] {
        let geometry = self.shared.backend.geometry();
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &self.shared.capacity.sectors().to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &geometry.logical_block.to_le_bytes());
        put(24, &topology(&geometry));
        put(32, &[self.shared.write_cache.is_on().into()]);
        put(34, &u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX).to_le_bytes());
        if let Some(discard) = geometry.discard {
            let alignment = u64::from(discard.granularity) / SECTOR_BYTES;
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &u32::try_from(alignment).unwrap_or(1).to_le_bytes());
        }
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[u8::from(geometry.discard.is_some())]);
        config
    }

    fn limits(&self) -> Limits {
        let geometry = self.shared.backend.geometry();
        Limits {
            capacity: self.shared.capacity.bytes(),
            logical_block: geometry.logical_block,
            read_only: self.shared.backend.read_only(),
            discard: geometry.discard.is_some(),
            max_range_sectors: MAX_RANGE_SECTORS,
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        if self.queue_sizes.len() > 1 {
            features |= feature::MQ;
        }
        // A mode whose writes are all durable offers no way to make them less so.
        if self.shared.backend.cache_mode().has_write_cache() {
            features |= feature::FLUSH | feature::CONFIG_WCE;
        }
        if self.shared.backend.read_only() {
            return features | feature::RO;
        }
        if self.shared.backend.geometry().discard.is_some() {
            features |= feature::DISCARD;
        }
        features | feature::WRITE_ZEROES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn config_generation(&self) -> u8 {
        self.shared.capacity.generation()
    }

    fn connect(&mut self, changed: ConfigChange) {
        let slot = &self.shared.changed;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
    }

    /// Switches the write cache. Switching it off flushes on the vCPU's own thread, by the register's nature: a driver that
    /// reads zero back ceases to flush (Linux reads it in the next instruction or so), so that zero must not be read before
    /// all that completed is durable; and one would be read as a refusal, after which nothing tells the driver of success.
    /// Neither the write nor the read can be left unanswered. A mode page of a SCSI disk is switched without that wait.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let (WRITEBACK_OFFSET, &[writeback]) = (offset, data) else { return };
        if !self.shared.cache_switchable.load(Ordering::Acquire) {
            return;
        }
        if writeback != 0 {
            return self.shared.write_cache.switch_on();
        }
        self.shared.write_cache.switch_off();
        // §5.2.6.2: writes that completed before the switch must not stay volatile after it. If they
        // cannot be made durable the cache stays on, which the driver reads back, so that its
        // flushes go on telling it.
        if let Err(error) = self.shared.backend.sync() {
            self.shared.write_cache.switch_on();
            if let Some(suppressed) = self.shared.cache_stays_on.check() {
                let name = &self.shared.name;
                tracing::error!(target: "virtio-blk", suppressed, "{name}: the write cache stays on: {error}");
            }
        }
    }

    fn negotiated(&mut self, features: u64) {
        Self::negotiated(self, features);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let mut workers: Vec<Worker> = Vec::with_capacity(activation.queues.len());
        for active in activation.queues {
            let stats = self.stats_of(active.index);
            let spawned = queue_worker::spawn(
                format!("{}/q{}", self.shared.name, active.index),
                active,
                activation.faults.clone(),
                self.engine(),
                stats,
                self.protocol(),
            );
            // On an error the workers started so far end as they are dropped.
            workers.push(spawned?);
        }
        Ok(workers)
    }

    fn reset(&mut self) {
        self.shared.write_cache.reset(self.shared.backend.cache_mode());
        self.shared.cache_switchable.store(false, Ordering::Release);
    }

    fn close(&mut self) -> io::Result<()> {
        self.shared.backend.sync()
    }
}

/// `struct virtio_blk_topology` (§5.2.4): block sizes as exponents and in logical blocks.
fn topology(geometry: &Geometry) -> [u8; 8] {
    let per_block = |bytes: u32| bytes / geometry.logical_block.max(1);
    let physical = per_block(geometry.physical_block).max(1);
    let exponent = u8::try_from(physical.ilog2()).unwrap_or(0);
    let [min_low, min_high] = u16::try_from(physical).unwrap_or(1).to_le_bytes();
    let [o0, o1, o2, o3] = per_block(geometry.optimal_io).to_le_bytes();
    [exponent, 0, min_low, min_high, o0, o1, o2, o3]
}
