//! The device: features, configuration, and the workers of its queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::block::{Backend, EngineSetup, IoEngine, OpenError};
use zerocopy::IntoBytes;

use super::config::{BlkConfig, MAX_RANGE_SECTORS, QUEUE_SIZE, WRITEBACK_OFFSET};
use super::protocol::BlockProtocol;
use super::request::{ID_BYTES, RequestLimits};
use super::state::BlockState;
use crate::storage::{DiskControl, Protocol, QueueStats, QueueWorker, error_of_disk};
use crate::virtio::device::{Activation, DeviceType, VirtioDevice, read_config_bytes};
use crate::virtqueue::{ActiveQueue, ConfigChange, FaultReporter};
use crate::worker::{StartError, Worker};

/// Feature bits (§5.2.3).
pub(in crate::virtio) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// A block device over a backend.
pub struct Block {
    state: Arc<BlockState>,
    id: [u8; ID_BYTES],
    queue_sizes: Vec<u16>,
}

impl Block {
    /// A device called `name` in the log with `queues` queues. GET_ID returns the first 20 bytes of
    /// `serial`.
    #[must_use]
    pub fn new(name: &str, serial: &str, queues: u16, backend: Arc<dyn Backend>) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let queues = queues.max(1);
        let queue_sizes = vec![QUEUE_SIZE; usize::from(queues)];
        Self { state: Arc::new(BlockState::new(name, queues, backend)), id, queue_sizes }
    }

    /// Controls of this disk.
    #[must_use]
    pub fn control(&self) -> DiskControl {
        DiskControl::new(self.state.clone())
    }

    /// Statistics by queue. A reset does not clear them.
    #[must_use]
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        &self.state.stats
    }

    /// Adopts the features that the driver selected.
    pub fn negotiated(&self, features: u64) {
        // Writes are durable for a driver that does not flush (§5.2.5.2, §5.2.6.2).
        self.state.write_cache.set_driver_flushes(features & feature::FLUSH != 0);
        let switchable = feature::FLUSH | feature::CONFIG_WCE;
        let is_switchable = features & switchable == switchable;
        self.state.cache_switchable.store(is_switchable, Ordering::Release);
    }

    /// Makes the worker of one queue without a thread, for the simulator.
    ///
    /// # Errors
    ///
    /// The host refuses the engine.
    pub fn worker(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
    ) -> Result<QueueWorker<impl Protocol + use<>>, StartError> {
        let stats = self.stats_of(active.index);
        QueueWorker::new(active, faults, self.engine(), stats, self.protocol())
    }

    /// Makes the engine of a queue on its worker's thread.
    fn engine(
        &self,
    ) -> impl FnOnce(&EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> + Send + use<> {
        let backend = Arc::clone(&self.state.backend);
        move |setup| backend.engine(setup)
    }

    fn protocol(&self) -> BlockProtocol {
        BlockProtocol { limits: self.limits(), id: self.id, state: Arc::clone(&self.state) }
    }

    fn stats_of(&self, queue: u16) -> Arc<QueueStats> {
        self.state.stats.get(usize::from(queue)).cloned().unwrap_or_default()
    }

    fn config(&self) -> BlkConfig {
        let state = &self.state;
        let (capacity, writeback) = (state.capacity.sectors(), state.writeback());
        BlkConfig::new(capacity, &state.backend.geometry(), writeback, self.queue_sizes.len())
    }

    fn limits(&self) -> RequestLimits {
        let geometry = self.state.backend.geometry();
        RequestLimits {
            capacity: self.state.capacity.bytes(),
            logical_block: geometry.logical_block,
            read_only: self.state.backend.read_only(),
            discard: geometry.discard.is_some(),
            max_range_sectors: MAX_RANGE_SECTORS,
        }
    }

    /// Switches the write cache off. After a failed flush the driver reads back 1 and flushes, so
    /// that it sees the error (§5.2.6.2). Its writes are then as durable as before.
    fn switch_cache_off(&self) {
        let state = &self.state;
        state.write_cache.begin_switch_off();
        let flushed = state.backend.sync();
        state.write_cache.end_switch_off(flushed.is_ok());
        state.needs_flush.store(flushed.is_err(), Ordering::Release);
        if let Err(error) = flushed
            && let Some(suppressed) = state.cache_not_flushed.check()
        {
            let name = &state.name;
            tracing::error!(
                target: "virtio-blk", suppressed,
                "{name}: the write cache stays on: cannot flush it: {error}"
            );
        }
    }

    /// Restores the state of the write cache that a driver assumes which does not read it again.
    /// Unlike a switch by the driver, this cannot fail. Earlier writes are flushed if a ring of the
    /// driver runs.
    pub(in crate::virtio) fn restore_write_cache(&self, on: bool, is_running: bool) {
        let state = &self.state;
        if on {
            return state.write_cache.switch_on();
        }
        state.write_cache.force_off();
        if is_running {
            self.switch_cache_off();
        }
        state.needs_flush.store(false, Ordering::Release);
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        &self.state.name
    }

    fn features(&self) -> u64 {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        if self.queue_sizes.len() > 1 {
            features |= feature::MQ;
        }
        // A cache mode whose writes are durable offers no way to make them volatile.
        if self.state.backend.cache_mode().has_write_cache() {
            features |= feature::FLUSH | feature::CONFIG_WCE;
        }
        if self.state.backend.read_only() {
            return features | feature::RO;
        }
        if self.state.backend.geometry().discard.is_some() {
            features |= feature::DISCARD;
        }
        features | feature::WRITE_ZEROES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config().as_bytes(), offset, data);
    }

    fn config_generation(&self) -> u8 {
        self.state.capacity.generation()
    }

    fn connect(&mut self, change: ConfigChange) {
        self.state.connect(change);
    }

    /// Switches the write cache. Switching it off flushes on the vCPU's thread, which the register
    /// requires: a driver that reads back zero stops flushing at once, so zero must not be visible
    /// before completed writes are durable; and one would be a refusal, which no later notification
    /// revokes. Neither the write nor the read can complete later. (A mode page of a SCSI disk is
    /// switched asynchronously.)
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let (WRITEBACK_OFFSET, &[writeback]) = (offset, data) else { return };
        if !self.state.cache_switchable.load(Ordering::Acquire) {
            return;
        }
        if writeback != 0 {
            self.state.write_cache.switch_on();
        } else {
            self.switch_cache_off();
        }
    }

    fn negotiated(&mut self, features: u64) {
        Self::negotiated(self, features);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, StartError> {
        let faults = activation.faults.clone();
        activation.start_workers(|active| {
            let name = format!("{}/q{}", self.state.name, active.index);
            let stats = self.stats_of(active.index);
            let (engine, protocol) = (self.engine(), self.protocol());
            QueueWorker::spawn(name, active, faults.clone(), engine, stats, protocol)
        })
    }

    fn reset(&mut self) {
        self.state.write_cache.device_reset();
        self.state.needs_flush.store(false, Ordering::Release);
        self.state.cache_switchable.store(false, Ordering::Release);
    }

    fn close(&mut self) -> io::Result<()> {
        let BlockState { backend, name, .. } = &*self.state;
        if backend.read_only() {
            return Ok(());
        }
        backend.sync().map_err(|error| error_of_disk(name, &error))
    }
}
