//! A logical unit: one disk as an initiator sees it, and the state that commands change.
//!
//! Shared by all queues and by the control plane. What reads and writes look at are atomics.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::block::{Backend, BackingSpace, ByteOffset, ByteRange, DiscardLimits, Geometry, LogLimit};

use super::attention::{Attention, Attentions};
use super::reservations::Reservations;
use super::sense::Sense;
use super::{Command, Outcome, opcodes};
use crate::storage::{DriverCapacity, WriteCache};

/// What tells a unit from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The unit serial number, ASCII.
    pub serial: String,
    /// A locally assigned NAA identifier (SPC-4 §7.8.6.6.4).
    pub naa: u64,
}

impl Identity {
    /// The identity of the disk with this serial number whose data is at `place`: the same in every run, and
    /// another one for every other pair.
    #[must_use]
    pub fn new(serial: &str, place: &str) -> Self {
        const LOCALLY_ASSIGNED: u64 = 3 << 60;
        // FNV-1a: the hashes of the standard library may change between its versions.
        let bytes = serial.bytes().chain([0]).chain(place.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { serial: serial.to_owned(), naa: LOCALLY_ASSIGNED | hash >> 4 }
    }
}

/// What one command may ask, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
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

/// See the module's documentation.
pub struct LogicalUnit {
    name: Arc<str>,
    backend: Arc<dyn Backend>,
    identity: Identity,
    /// As opened, but for the capacity.
    geometry: Geometry,
    limits: Limits,
    /// As the initiator knows it, in bytes.
    capacity: DriverCapacity,
    write_cache: WriteCache,
    attentions: Attentions,
    descriptor_sense: AtomicBool,
    stopped: AtomicBool,
    reservations: Mutex<Reservations>,
    /// The threshold that the initiator was told last; nothing if it was told none since that changed.
    told_threshold: Mutex<Option<u32>>,
    flushing: Mutex<()>,
    /// Said when the host does not say how much space is left, and which blocks take some.
    space_untold: LogLimit,
    pub(super) allocation_untold: LogLimit,
}

impl LogicalUnit {
    /// A disk called `name` in the log.
    #[must_use]
    pub fn new(name: &str, identity: Identity, backend: Arc<dyn Backend>) -> Self {
        let geometry = backend.geometry();
        let blocks = |bytes: u64| bytes / u64::from(geometry.logical_block.max(1));
        let unit = Self {
            name: name.into(),
            identity,
            geometry,
            limits: Limits {
                transfer_blocks: blocks(TRANSFER_BYTES),
                write_same_blocks: blocks(RANGE_BYTES),
                compare_and_write_blocks: blocks(COMPARE_AND_WRITE_BYTES),
                unmap_blocks: blocks(RANGE_BYTES),
                unmap_descriptors: UNMAP_DESCRIPTORS,
            },
            capacity: DriverCapacity::new(geometry.capacity),
            write_cache: WriteCache::new(backend.cache_mode()),
            attentions: Attentions::default(),
            descriptor_sense: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            reservations: Mutex::default(),
            told_threshold: Mutex::default(),
            flushing: Mutex::default(),
            space_untold: LogLimit::default(),
            allocation_untold: LogLimit::default(),
            backend,
        };
        unit.raise(Attention::PowerOn);
        unit
    }

    /// The disk's name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is behind it.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Makes all that was written durable, outside of any queue. Blocks.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    pub fn sync(&self) -> io::Result<()> {
        // One at a time: two would share the host's one report of a lost write (ADR 5).
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.backend.sync()
    }

    /// Its write cache.
    #[must_use]
    pub fn write_cache(&self) -> &WriteCache {
        &self.write_cache
    }

    /// The disk as its initiator knows it.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { capacity: self.capacity(), ..self.geometry }
    }

    /// Bytes the initiator knows of.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity.bytes()
    }

    /// The disk has another size: the initiator is told with its next command. Whether it had not that size before.
    pub fn set_capacity(&self, bytes: u64) -> bool {
        let changed = self.capacity.set(bytes);
        if changed {
            self.raise(Attention::CapacityChanged);
        }
        changed
    }

    pub(crate) fn driver_capacity(&self) -> &DriverCapacity {
        &self.capacity
    }

    /// Tells the initiator of `attention` with its next command.
    pub fn raise(&self, attention: Attention) {
        self.attentions.raise(attention);
    }

    /// Back to how the unit was at its start (SAM-5 §6.3.3), for the reason that the initiator is told. Reservations stay.
    pub fn reset(&self, reason: Attention) {
        self.write_cache.reset(self.backend.cache_mode());
        self.descriptor_sense.store(false, Ordering::Release);
        self.stopped.store(false, Ordering::Release);
        self.raise(reason);
    }

    /// Whether sense data is sent in descriptor format.
    #[must_use]
    pub fn descriptor_sense(&self) -> bool {
        self.descriptor_sense.load(Ordering::Acquire)
    }

    /// What becomes of a command.
    pub(super) fn execute(&self, command: &Command<'_>) -> Outcome {
        let found = opcodes::find(self, command.cdb);
        let tells_attention = found.as_ref().map_or(true, |entry| entry.tells_attention);
        if tells_attention && let Some(attention) = self.take_attention() {
            return Err(attention.sense().into());
        }
        let entry = found?;
        if entry.needs_medium && self.is_stopped() {
            return Err(Sense::STOPPED.into());
        }
        (entry.run)(self, command)
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u32 {
        self.geometry.logical_block
    }

    /// The number of the last block.
    pub(super) fn last_block(&self) -> u64 {
        (self.capacity() / u64::from(self.block().max(1))).saturating_sub(1)
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn discard(&self) -> Option<DiscardLimits> {
        self.geometry.discard
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether there is a write cache that can be switched on.
    pub(super) fn has_write_cache(&self) -> bool {
        self.backend.cache_mode().has_write_cache()
    }

    /// The space of what stores the disk, where blocks can be given back to it and it can be told.
    pub(super) fn backing_space(&self) -> Option<BackingSpace> {
        self.discard()?;
        self.backend.backing_space().unwrap_or_else(|error| {
            if let Some(suppressed) = self.space_untold.check() {
                let name = &self.name;
                tracing::warn!(target: "scsi", suppressed, "{name}: cannot tell the space left: {error}");
            }
            None
        })
    }

    /// How many blocks a threshold set has, as a power of two: at least a MiB, so that the counts of the largest
    /// disk fit their fields. Zero where nothing can be counted.
    pub(super) fn threshold_exponent(&self) -> u8 {
        const SET_BYTES: u64 = 1 << 20;
        if self.backing_space().is_none() {
            return 0;
        }
        let sets = |exponent: u32| self.capacity() >> exponent.min(63);
        let block = u64::from(self.block().max(1));
        let least = (SET_BYTES / block).max(2).ilog2();
        let fits = |exponent: &u32| sets(exponent + block.ilog2()) <= u64::from(u32::MAX);
        (least..63).find(fits).and_then(|exponent| u8::try_from(exponent).ok()).unwrap_or(63)
    }

    /// How many threshold sets are used when the soft limit is reached; nothing without one. For the initiator.
    pub(super) fn tell_threshold(&self) -> Option<u32> {
        let threshold = self.threshold();
        *self.told_threshold() = threshold;
        threshold
    }

    /// Looks whether the threshold is another one than the initiator was told, because the store has another size, and tells
    /// it so once.
    pub fn check_threshold(&self) {
        let mut told = self.told_threshold();
        if told.is_some() && *told != self.threshold() {
            *told = None;
            self.raise(Attention::ModeChanged);
        }
    }

    fn threshold(&self) -> Option<u32> {
        let percent = self.backend.status().soft_limit?.percent;
        let sets = self.backing_space()?.part(percent).div_ceil(self.threshold_set());
        Some(u32::try_from(sets).unwrap_or(u32::MAX))
    }

    fn told_threshold(&self) -> MutexGuard<'_, Option<u32>> {
        self.told_threshold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a threshold set.
    pub(super) fn threshold_set(&self) -> u64 {
        u64::from(self.block()) << self.threshold_exponent()
    }

    pub(super) fn take_attention(&self) -> Option<Attention> {
        self.attentions.take()
    }

    pub(super) fn luns_were_reported(&self) {
        self.attentions.luns_were_reported();
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
        // A command that fails leaves it as it was.
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` blocks from `first` on, which lie within the disk.
    pub(super) fn range(&self, first: u64, count: u64) -> Result<ByteRange, Sense> {
        let block = u64::from(self.block());
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
