//! A logical unit: a disk as its initiator sees it, and the state that commands change.
//!
//! Shared by all queues and the control plane. Reads and writes access atomics only.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::block::{Backend, BackingSpace, ByteOffset, ByteRange, DiscardLimits, Geometry, LogLimit};

use super::attention::{Attention, Attentions};
use super::host_queries::{AllocationQuery, HostQueries};
use super::identity::Identity;
use super::reservations::Reservations;
use super::sense::Sense;
use crate::storage::{DriverCapacity, WriteCache};

/// Limits of one command, in logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommandLimits {
    pub(super) transfer_blocks: u64,
    pub(super) write_same_blocks: u64,
    pub(super) compare_and_write_blocks: u64,
    pub(super) unmap_blocks: u64,
    pub(super) unmap_descriptors: usize,
}

/// The same in bytes.
const TRANSFER_BYTES: u64 = 32 << 20;
const RANGE_BYTES: u64 = 2 << 30;
const COMPARE_AND_WRITE_BYTES: u64 = 64 << 10;
const UNMAP_DESCRIPTORS: usize = 256;

impl CommandLimits {
    fn new(block_bytes: u32) -> Self {
        let blocks = |bytes: u64| bytes / u64::from(block_bytes.max(1));
        Self {
            transfer_blocks: blocks(TRANSFER_BYTES),
            write_same_blocks: blocks(RANGE_BYTES),
            compare_and_write_blocks: blocks(COMPARE_AND_WRITE_BYTES),
            unmap_blocks: blocks(RANGE_BYTES),
            unmap_descriptors: UNMAP_DESCRIPTORS,
        }
    }
}

/// A disk of a target.
pub struct LogicalUnit {
    /// Name in the configuration.
    name: Arc<str>,
    backend: Arc<dyn Backend>,
    identity: Identity,
    /// As opened. `capacity` has the current capacity.
    geometry: Geometry,
    limits: CommandLimits,
    capacity: DriverCapacity,
    write_cache: WriteCache,
    attentions: Attentions,
    /// D_SENSE of the control mode page.
    descriptor_sense: AtomicBool,
    stopped: AtomicBool,
    reservations: Mutex<Reservations>,
    /// The threshold that the initiator read last; `None` if it read none or has been notified of a
    /// change since.
    reported_threshold: Mutex<Option<u32>>,
    /// Held during a flush outside of the queues.
    flushing: Mutex<()>,
    queries: HostQueries,
    /// Bounds the log of failed queries of the allocated blocks.
    unknown_allocation: LogLimit,
}

impl LogicalUnit {
    /// A disk called `name` in the log.
    #[must_use]
    pub fn new(name: &str, identity: Identity, backend: Arc<dyn Backend>) -> Self {
        let geometry = backend.geometry();
        let name: Arc<str> = name.into();
        let unit = Self {
            queries: HostQueries::new(&name),
            name,
            identity,
            geometry,
            limits: CommandLimits::new(geometry.logical_block),
            capacity: DriverCapacity::new(geometry.capacity),
            write_cache: WriteCache::new(backend.cache_mode()),
            attentions: Attentions::default(),
            descriptor_sense: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            reservations: Mutex::default(),
            reported_threshold: Mutex::default(),
            flushing: Mutex::default(),
            unknown_allocation: LogLimit::default(),
            backend,
        };
        unit.raise(Attention::PowerOn);
        unit
    }

    /// Name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk's backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Makes all completed writes durable, outside of the queues. Blocks. A read-only unit is not
    /// flushed.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    pub fn sync(&self) -> io::Result<()> {
        if self.backend.read_only() {
            return Ok(());
        }
        // One at a time: the host reports a lost write only once (ADR 5).
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.backend.sync()
    }

    /// The write cache.
    #[must_use]
    pub fn write_cache(&self) -> &WriteCache {
        &self.write_cache
    }

    /// Geometry, with the capacity that the initiator knows.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { capacity: self.capacity(), ..self.geometry }
    }

    /// The capacity that the initiator knows, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity.bytes()
    }

    pub(crate) fn driver_capacity(&self) -> &DriverCapacity {
        &self.capacity
    }

    /// Sets the capacity in bytes and raises CAPACITY DATA HAS CHANGED if it changed. Returns
    /// whether it did.
    pub fn set_capacity(&self, bytes: u64) -> bool {
        let changed = self.capacity.set(bytes);
        if changed {
            self.raise(Attention::CapacityChanged);
        }
        changed
    }

    /// Raises a unit attention condition, which the next command reports.
    pub fn raise(&self, attention: Attention) {
        self.attentions.raise(attention);
    }

    /// Resets the unit (SAM-5 §6.3.3) and raises the condition `reason`. Reservations are kept, and
    /// so is the state of the write cache, which the reset leaves at its default (ADR 14).
    pub fn reset(&self, reason: Attention) {
        self.descriptor_sense.store(false, Ordering::Release);
        self.stopped.store(false, Ordering::Release);
        self.raise(reason);
    }

    /// Whether sense data has descriptor format.
    #[must_use]
    pub fn descriptor_sense(&self) -> bool {
        self.descriptor_sense.load(Ordering::Acquire)
    }

    /// Length of a logical block in bytes.
    pub(super) fn block_bytes(&self) -> u32 {
        self.geometry.logical_block
    }

    /// Address of the last block.
    pub(super) fn last_block(&self) -> u64 {
        (self.capacity() / u64::from(self.block_bytes().max(1))).saturating_sub(1)
    }

    pub(super) fn limits(&self) -> CommandLimits {
        self.limits
    }

    pub(super) fn discard(&self) -> Option<DiscardLimits> {
        self.geometry.discard
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the unit has a write cache, which may be switched off.
    pub(super) fn has_write_cache(&self) -> bool {
        self.backend.cache_mode().has_write_cache()
    }

    /// Space of the backing store as measured last; `None` if blocks cannot be deallocated, or the
    /// space is not known (yet). Never asks the host, but starts a measurement if the last one is
    /// old.
    pub(super) fn backing_space(&self) -> Option<BackingSpace> {
        self.discard()?;
        self.queries.space(&self.backend)
    }

    /// Measures the space of the backing store. Blocks.
    pub fn measure_space(&self) {
        if self.discard().is_some() {
            self.queries.measure_space(&*self.backend);
        }
    }

    /// Starts the first measurement of the space and waits for it, but at most for `limit`.
    pub(crate) fn start_measurement(&self, limit: Duration) {
        if self.discard().is_some() && self.queries.space(&self.backend).is_none() {
            self.queries.wait_for_space(limit);
        }
    }

    /// Starts a query of the extents, on a thread of the disk.
    pub(crate) fn start_query(&self, query: Arc<AllocationQuery>) {
        self.queries.push(&self.backend, query);
    }

    /// Abandons a query. If the host works on it, its answer is dropped.
    pub(crate) fn abandon_query(&self, query: &Arc<AllocationQuery>) {
        self.queries.abandon(query);
    }

    /// Drops the unit and waits until none of its queries uses the image.
    pub(crate) fn close(unit: Arc<Self>) {
        let queries = unit.queries.clone();
        drop(unit);
        queries.wait_idle();
    }

    /// Logs a failed query of the allocated blocks.
    pub(super) fn log_unknown_allocation(&self, error: &io::Error) {
        if let Some(suppressed) = self.unknown_allocation.check() {
            let name = &self.name;
            tracing::warn!(
                target: "scsi", suppressed,
                "{name}: cannot query its allocated blocks: {error}"
            );
        }
    }

    /// Number of blocks of a threshold set, as a power of two: at least 1 MiB, so that the counts
    /// of the largest disk fit their fields. Zero without thresholds.
    pub(super) fn threshold_exponent(&self) -> u8 {
        const SET_BYTES: u64 = 1 << 20;
        if self.backing_space().is_none() {
            return 0;
        }
        let sets = |exponent: u32| self.capacity() >> exponent.min(63);
        let block = u64::from(self.block_bytes().max(1));
        let least = (SET_BYTES / block).max(2).ilog2();
        let fits = |exponent: &u32| sets(exponent + block.ilog2()) <= u64::from(u32::MAX);
        (least..63).find(fits).and_then(|exponent| u8::try_from(exponent).ok()).unwrap_or(63)
    }

    /// Length of a threshold set in bytes.
    pub(super) fn threshold_set_bytes(&self) -> u64 {
        u64::from(self.block_bytes()) << self.threshold_exponent()
    }

    /// Number of threshold sets used when the soft limit is reached, for the initiator; `None`
    /// without a soft limit.
    pub(super) fn report_threshold(&self) -> Option<u32> {
        let threshold = self.threshold();
        *self.reported_threshold() = threshold;
        threshold
    }

    /// Raises MODE PARAMETERS CHANGED once if the threshold differs from the one that the initiator
    /// read, because the size of the store changed.
    pub fn check_threshold(&self) {
        let mut reported = self.reported_threshold();
        if reported.is_some() && *reported != self.threshold() {
            *reported = None;
            self.raise(Attention::ModeChanged);
        }
    }

    fn threshold(&self) -> Option<u32> {
        let percent = self.backend.status().soft_limit?.percent;
        let sets = self.backing_space()?.part(percent).div_ceil(self.threshold_set_bytes());
        Some(u32::try_from(sets).unwrap_or(u32::MAX))
    }

    fn reported_threshold(&self) -> MutexGuard<'_, Option<u32>> {
        self.reported_threshold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the oldest unit attention condition, which the caller reports.
    pub(super) fn take_attention(&self) -> Option<Attention> {
        self.attentions.take()
    }

    pub(super) fn clear_luns_changed(&self) {
        self.attentions.clear_luns_changed();
    }

    pub(super) fn set_descriptor_sense(&self, on: bool) {
        self.descriptor_sense.store(on, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Release);
    }

    pub(super) fn reservations(&self) -> MutexGuard<'_, Reservations> {
        // A command that fails changes nothing.
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The range of `count` blocks from `first`, checked to be on the disk.
    pub(super) fn range(&self, first: u64, count: u64) -> Result<ByteRange, Sense> {
        let block = u64::from(self.block_bytes());
        let end = first.checked_add(count).and_then(|end| end.checked_mul(block));
        match end {
            Some(end) if end <= self.capacity() => {
                let len = count * block;
                Ok(ByteRange { start: ByteOffset(end - len), len })
            }
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), Sense> {
        if self.backend.read_only() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
    }
}
