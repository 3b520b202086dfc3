//! What a controller's queues, its registers and the control plane share: which disk is where.
//!
//! Workers keep a copy of the map and look at one number per request to see whether it is still the same. A disk that is
//! taken off the map is left when no copy has it any more, no engine serves it, and nothing of it is in flight.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ::block::Backend;

use super::disk::{self, Disk, Exit, Handle};
use super::event_queue::{Event, Events};
use super::request::{CDB_BYTES, SENSE_BYTES};
use super::tasks::Mailbox;
use crate::scsi::{Attention, Identity, LogicalUnit, Target};

/// Where a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The logical unit number, at most [`Address::MOST_LUN`].
    pub lun: u16,
}

impl Address {
    /// The highest logical unit number (Virtio 1.2 §5.6.4).
    pub const MOST_LUN: u16 = Target::MOST_LUN;

    /// As requests and events have it (§5.6.6.1).
    pub(super) fn encode(self) -> [u8; 8] {
        let [high, low] = Target::encode_lun(self.lun);
        [1, self.target, high, low, 0, 0, 0, 0]
    }
}

/// Why a disk cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Another disk has the address.
    #[error("target {0}, LUN {1} is taken")]
    Taken(u8, u16),
    /// There is no such number.
    #[error("LUN {0} is above {max}", max = Address::MOST_LUN)]
    TooHigh(u16),
    /// There are too many.
    #[error("the controller has {max} disks already", max = u16::MAX)]
    Exhausted,
}

/// Which disk is where.
#[derive(Clone, Default)]
pub(super) struct Map {
    /// By number; the last is in use.
    targets: Vec<Option<Place>>,
    /// Every disk by its number on the controller.
    disks: Vec<Option<Arc<Disk>>>,
}

#[derive(Clone, Default)]
pub(super) struct Place {
    pub(super) target: Target,
    /// The disks of the target's units, in the same order.
    numbers: Vec<u16>,
}

impl Place {
    /// The number of the disk that has this logical unit number.
    pub(super) fn disk(&self, lun: u16) -> Option<u16> {
        self.numbers.get(self.target.position(lun)?).copied()
    }
}

impl Map {
    pub(super) fn target(&self, number: u8) -> Option<&Place> {
        self.targets.get(usize::from(number))?.as_ref()
    }

    pub(super) fn disk(&self, number: u16) -> Option<&Arc<Disk>> {
        self.disks.get(usize::from(number))?.as_ref()
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter().flatten()
    }

    fn add(&mut self, number: u16, disk: Arc<Disk>) -> Result<(), NoPlace> {
        let Address { target, lun } = disk.address;
        let index = usize::from(target);
        if self.targets.len() <= index {
            self.targets.resize_with(index + 1, || None);
        }
        let Some(place) = self.targets.get_mut(index) else { return Err(NoPlace::Exhausted) };
        let place = place.get_or_insert_default();
        if !place.target.add(lun, Arc::clone(&disk.unit)) {
            return Err(NoPlace::Taken(target, lun));
        }
        place.numbers.insert(place.target.position(lun).unwrap_or(0), number);
        let index = usize::from(number);
        if self.disks.len() <= index {
            self.disks.resize_with(index + 1, || None);
        }
        if let Some(entry) = self.disks.get_mut(index) {
            *entry = Some(disk);
        }
        Ok(())
    }

    /// The disk that was there, and its number.
    fn remove(&mut self, address: Address) -> Option<(u16, Arc<Disk>)> {
        let Address { target, lun } = address;
        let place = self.targets.get_mut(usize::from(target))?.as_mut()?;
        let position = place.target.position(lun)?;
        place.target.remove(lun);
        let number = place.numbers.remove(position);
        if place.numbers.is_empty()
            && let Some(place) = self.targets.get_mut(usize::from(target))
        {
            *place = None;
        }
        while self.targets.pop_if(|last| last.is_none()).is_some() {}
        Some((number, self.disks.get_mut(usize::from(number))?.take()?))
    }

    /// Tells the other units of a target that one has come or gone (SPC-4 §6.33).
    fn tell_others(&self, address: Address) {
        let place = self.target(address.target);
        let units = place.into_iter().flat_map(|place| place.target.units());
        for (_, unit) in units.filter(|(lun, _)| *lun != address.lun) {
            unit.raise(Attention::LunsChanged);
        }
    }
}

/// See the module's documentation.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) sense_size: AtomicU32,
    pub(super) cdb_size: AtomicU32,
    pub(super) events: Events,
    /// By request queue.
    pub(super) mailboxes: Vec<Mailbox>,
    version: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    map: Arc<Map>,
    /// How to wait for the end of each disk.
    exits: BTreeMap<Address, Exit>,
    /// Numbers of disks that were left.
    free: Vec<u16>,
    /// Disks that were detached, as long as somebody has them.
    leaving: Vec<Weak<LogicalUnit>>,
}

impl Inner {
    /// One that nobody knows a disk by.
    fn next_number(&self) -> Result<u16, NoPlace> {
        let unused = || u16::try_from(self.map.disks.len()).ok().filter(|next| *next < u16::MAX);
        self.free.last().copied().or_else(unused).ok_or(NoPlace::Exhausted)
    }
}

impl Shared {
    /// # Errors
    ///
    /// The host gives no event.
    pub(super) fn new(name: &str, queues: usize) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            sense_size: AtomicU32::new(SENSE_BYTES),
            cdb_size: AtomicU32::new(CDB_BYTES),
            events: Events::new()?,
            mailboxes: (0..queues).map(|_| Mailbox::default()).collect(),
            version: AtomicU64::new(0),
            inner: Mutex::default(),
        })
    }

    /// Changes with the map.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The map as it is now.
    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.lock().map)
    }

    /// The highest target with a disk; what drivers look for at their start (§5.6.4).
    pub(super) fn highest_target(&self) -> u8 {
        u8::try_from(self.map().targets.len().saturating_sub(1)).unwrap_or(u8::MAX)
    }

    /// See [`super::ScsiBus::attach`].
    pub(super) fn attach(
        self: &Arc<Self>,
        address: Address,
        name: &str,
        identity: Identity,
        backend: Arc<dyn Backend>,
    ) -> Result<Arc<Handle>, NoPlace> {
        if address.lun > Address::MOST_LUN {
            return Err(NoPlace::TooHigh(address.lun));
        }
        let mut inner = self.lock();
        let number = inner.next_number()?;
        let (disk, handle, exit) = disk::new(self, address, name, identity, backend);
        let mut map = Map::clone(&inner.map);
        map.add(number, disk)?;
        inner.free.pop();
        inner.exits.insert(address, exit);
        self.replace(inner, map).tell_others(address);
        self.events.raise(Event::added(address));
        Ok(handle)
    }

    /// See [`super::ScsiBus::detach`].
    pub(super) fn detach(self: &Arc<Self>, address: Address) -> Option<Leaving> {
        let mut inner = self.lock();
        let mut map = Map::clone(&inner.map);
        let (number, disk) = map.remove(address)?;
        let exit = inner.exits.remove(&address)?;
        let unit = Arc::clone(&disk.unit);
        drop(disk);
        inner.leaving.retain(|unit| unit.strong_count() > 0);
        inner.leaving.push(Arc::downgrade(&unit));
        // Before the workers are woken, which then see to it.
        unit.backend().stop_holding();
        self.replace(inner, map).tell_others(address);
        self.events.raise(Event::removed(address));
        Some(Leaving { shared: Arc::clone(self), number, unit, exit })
    }

    /// Makes the data of all disks durable, also of those that were detached.
    ///
    /// # Errors
    ///
    /// The first of the host's errors; data may be lost.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        let inner = self.lock();
        let attached = inner.map.disks().map(|disk| Arc::clone(&disk.unit));
        let units: Vec<_> =
            attached.chain(inner.leaving.iter().filter_map(Weak::upgrade)).collect();
        drop(inner);
        units.iter().map(|unit| unit.sync()).fold(Ok(()), Result::and)
    }

    fn replace(&self, mut inner: MutexGuard<'_, Inner>, map: Map) -> Arc<Map> {
        let map = Arc::new(map);
        let before = std::mem::replace(&mut inner.map, Arc::clone(&map));
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(inner);
        drop(before);
        // Workers let go of what is no more.
        self.mailboxes.iter().for_each(Mailbox::kick);
        map
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The map is replaced whole, and what else there is changes with it, so that a panic elsewhere leaves nothing broken.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk that was detached: no new request finds it, but some may be in flight. Dropping this waits for nothing.
#[must_use = "its data is not durable yet"]
pub struct Leaving {
    shared: Arc<Shared>,
    number: u16,
    unit: Arc<LogicalUnit>,
    exit: Exit,
}

impl Leaving {
    /// Waits until no queue has anything of the disk in flight, and makes what was written durable. Blocks, for as long as
    /// the host works on a request or on the flush.
    ///
    /// # Errors
    ///
    /// The flush failed: data that the driver believes safe may be lost.
    pub fn settle(&self) -> io::Result<()> {
        self.exit.wait_until_left();
        let mut inner = self.shared.lock();
        if !inner.free.contains(&self.number) {
            inner.free.push(self.number);
        }
        drop(inner);
        self.unit.sync()
    }

    /// Closes the disk's file, which ends its lock. Blocks until the last [`DiskControl`](crate::virtio::DiskControl) of
    /// the disk is gone.
    pub fn close(self) {
        let Self { unit, exit, .. } = self;
        drop(unit);
        exit.wait_until_closed();
    }
}
