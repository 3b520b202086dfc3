//! The state of a controller that its queues, its registers and the control plane share.
//!
//! Each worker keeps a copy of the disk map and checks its version once per request. A detached
//! disk is released when no copy contains it, no engine serves it, and none of its requests is in
//! flight.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::block::Backend;

use super::address::Address;
use super::disk::{self, DiskHandle, ReleaseWatch};
use super::disk_map::{AttachError, DiskMap};
use super::event_queue::{Event, Events};
use super::request::CDB_BYTES;
use super::response::SENSE_BYTES;
use super::task_management::TmfMailbox;
use crate::scsi::{Attention, Identity, LogicalUnit};
use crate::storage::error_of_disk;

/// How long an attach waits for the space of the backing store, which commands report.
const FIRST_MEASUREMENT: Duration = Duration::from_millis(100);

/// The shared state.
pub(super) struct Controller {
    /// Name in the log.
    pub(super) name: Arc<str>,
    /// `sense_size` of the configuration.
    sense_size: AtomicU32,
    /// `cdb_size` of the configuration.
    cdb_size: AtomicU32,
    pub(super) events: Arc<Events>,
    /// By request queue.
    pub(super) mailboxes: Arc<[TmfMailbox]>,
    /// Number of changes of the map.
    version: AtomicU64,
    disks: Mutex<DiskState>,
}

#[derive(Default)]
struct DiskState {
    map: Arc<DiskMap>,
    /// Of the attached disks.
    watches: BTreeMap<Address, ReleaseWatch>,
    /// Numbers of released disks.
    free: Vec<u16>,
    /// Units of detached disks until they are released.
    detached: Vec<Weak<LogicalUnit>>,
    /// Addresses whose last unit had its write cache switched off. A driver that did not notice the
    /// detach continues with the next unit of the address and sends no flushes (ADR 14).
    cache_off: BTreeSet<Address>,
}

impl DiskState {
    /// A number that no queue refers to.
    fn next_number(&self) -> Result<u16, AttachError> {
        let unused = || self.map.unused_number();
        self.free.last().copied().or_else(unused).ok_or(AttachError::Full)
    }
}

impl Controller {
    /// A controller with `queues` request queues and no disks.
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub(super) fn new(name: &str, queues: usize) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            sense_size: AtomicU32::new(SENSE_BYTES),
            cdb_size: AtomicU32::new(CDB_BYTES),
            events: Arc::new(Events::new()?),
            mailboxes: (0..queues).map(|_| TmfMailbox::default()).collect(),
            version: AtomicU64::new(0),
            disks: Mutex::default(),
        })
    }

    pub(super) fn sense_size(&self) -> u32 {
        self.sense_size.load(Ordering::Acquire)
    }

    pub(super) fn cdb_size(&self) -> u32 {
        self.cdb_size.load(Ordering::Acquire)
    }

    pub(super) fn set_sense_size(&self, bytes: u32) {
        self.sense_size.store(bytes, Ordering::Release);
    }

    pub(super) fn set_cdb_size(&self, bytes: u32) {
        self.cdb_size.store(bytes, Ordering::Release);
    }

    /// Restores the state after a reset of the device. Disks stay attached.
    pub(super) fn reset(&self) {
        self.set_sense_size(SENSE_BYTES);
        self.set_cdb_size(CDB_BYTES);
        self.events.reset();
        for disk in self.map().disks() {
            disk.unit.write_cache().device_reset();
            disk.unit.reset(Attention::PowerOn);
        }
    }

    /// Version of the map.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The current map.
    pub(super) fn map(&self) -> Arc<DiskMap> {
        Arc::clone(&self.lock().map)
    }

    /// See [`super::ScsiBus::attach`].
    pub(super) fn attach(
        &self,
        address: Address,
        name: &str,
        identity: Identity,
        backend: Arc<dyn Backend>,
    ) -> Result<Arc<DiskHandle>, AttachError> {
        if address.lun > Address::MAX_LUN {
            return Err(AttachError::LunTooHigh(address.lun));
        }
        let mut disks = self.lock();
        let number = disks.next_number()?;
        let (queues, events) = (self.mailboxes.len(), Arc::clone(&self.events));
        let (disk, handle, watch) = disk::new((address, name), identity, backend, queues, events);
        if disks.cache_off.contains(&address) {
            disk.unit.write_cache().force_off();
        }
        let unit = Arc::clone(&disk.unit);
        let mut map = DiskMap::clone(&disks.map);
        map.add(number, disk)?;
        disks.free.pop();
        disks.watches.insert(address, watch);
        self.replace(disks, map).announce_luns_changed(address);
        self.events.raise(Event::added(address));
        unit.start_measurement(FIRST_MEASUREMENT);
        Ok(handle)
    }

    /// See [`super::ScsiBus::detach`].
    pub(super) fn detach(self: &Arc<Self>, address: Address) -> Option<Detached> {
        let mut disks = self.lock();
        let mut map = DiskMap::clone(&disks.map);
        let (number, disk) = map.remove(address)?;
        let watch = disks.watches.remove(&address)?;
        let unit = Arc::clone(&disk.unit);
        drop(disk);
        if unit.write_cache().is_on() {
            disks.cache_off.remove(&address);
        } else {
            disks.cache_off.insert(address);
        }
        disks.detached.retain(|unit| unit.strong_count() > 0);
        disks.detached.push(Arc::downgrade(&unit));
        // Before the workers are kicked: they then retry the held requests.
        unit.backend().stop_holding();
        self.replace(disks, map).announce_luns_changed(address);
        self.events.raise(Event::removed(address));
        Some(Detached { controller: Arc::clone(self), number, unit, watch })
    }

    /// Makes the data of all disks durable, including detached ones.
    ///
    /// # Errors
    ///
    /// The first error of the host; data may be lost.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        let disks = self.lock();
        let attached = disks.map.disks().map(|disk| Arc::clone(&disk.unit));
        let units: Vec<_> =
            attached.chain(disks.detached.iter().filter_map(Weak::upgrade)).collect();
        drop(disks);
        let sync = |unit: &Arc<LogicalUnit>| {
            unit.sync().map_err(|error| error_of_disk(unit.name(), &error))
        };
        units.iter().map(sync).fold(Ok(()), Result::and)
    }

    fn replace(&self, mut disks: MutexGuard<'_, DiskState>, map: DiskMap) -> Arc<DiskMap> {
        let map = Arc::new(map);
        let before = std::mem::replace(&mut disks.map, Arc::clone(&map));
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(disks);
        drop(before);
        // Wakes idle workers, which then release detached disks.
        self.mailboxes.iter().for_each(TmfMailbox::kick);
        map
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        // The map is replaced whole and the other fields with it: a panic leaves nothing
        // inconsistent.
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A detached disk: new requests do not find it, but earlier ones may be in flight. Dropping this
/// value does not wait.
#[must_use = "its data is not durable yet"]
pub struct Detached {
    controller: Arc<Controller>,
    number: u16,
    unit: Arc<LogicalUnit>,
    watch: ReleaseWatch,
}

impl Detached {
    /// Waits until none of the disk's requests is in flight, then makes its data durable. Blocks as
    /// long as the host takes for the requests and the flush.
    ///
    /// # Errors
    ///
    /// The flush failed: acknowledged data may be lost.
    pub fn drain(&self) -> io::Result<()> {
        self.watch.wait_for_queues();
        let mut disks = self.controller.lock();
        if !disks.free.contains(&self.number) {
            disks.free.push(self.number);
        }
        drop(disks);
        self.unit.sync()
    }

    /// Closes the disk's file and releases its lock. Blocks until the last
    /// [`DiskControl`](crate::storage::DiskControl) of the disk is dropped.
    pub fn close(self) {
        let Self { unit, watch, .. } = self;
        watch.wait_for_all();
        LogicalUnit::close(unit);
    }
}
