//! What a controller's queues, its registers and the control plane share: which disk is where.
//!
//! Workers keep a copy of the map and look at one number per request to see whether it is still the same.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::block::Backend;

use super::disk::Disk;
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
    /// Disks were attached and detached too often.
    #[error("the controller has had {max} disks already", max = u16::MAX)]
    Exhausted,
}

/// Which disk is where.
#[derive(Clone, Default)]
pub(super) struct Map {
    /// By number; the last is in use.
    targets: Vec<Option<Place>>,
    /// Every disk by its number on the controller, which is never used again.
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
    map: Mutex<Arc<Map>>,
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
            map: Mutex::default(),
        })
    }

    /// Changes with the map.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The map as it is now.
    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.lock())
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
    ) -> Result<Arc<Disk>, NoPlace> {
        let Address { target, lun } = address;
        if lun > Address::MOST_LUN {
            return Err(NoPlace::TooHigh(lun));
        }
        let current = self.lock();
        let mut map = Map::clone(&current);
        let number = u16::try_from(map.disks.len()).map_err(|_| NoPlace::Exhausted)?;
        let unit = Arc::new(LogicalUnit::new(name, identity, backend));
        let stats = self.mailboxes.iter().map(|_| Arc::default()).collect();
        let disk = Arc::new(Disk { unit, address, stats, shared: Arc::downgrade(self) });
        let index = usize::from(target);
        if map.targets.len() <= index {
            map.targets.resize_with(index + 1, || None);
        }
        let Some(place) = map.targets.get_mut(index) else { return Err(NoPlace::Exhausted) };
        let place = place.get_or_insert_default();
        if !place.target.add(lun, Arc::clone(&disk.unit)) {
            return Err(NoPlace::Taken(target, lun));
        }
        place.numbers.insert(place.target.position(lun).unwrap_or(0), number);
        for (_, unit) in place.target.units().filter(|(other, _)| *other != lun) {
            unit.raise(Attention::LunsChanged);
        }
        map.disks.push(Some(Arc::clone(&disk)));
        self.replace(current, map);
        self.events.raise(Event::added(address));
        Ok(disk)
    }

    /// See [`super::ScsiBus::detach`].
    pub(super) fn detach(&self, address: Address) -> bool {
        let Address { target, lun } = address;
        let current = self.lock();
        let mut map = Map::clone(&current);
        let Some(Some(place)) = map.targets.get_mut(usize::from(target)) else { return false };
        let Some(position) = place.target.position(lun) else { return false };
        place.target.remove(lun);
        let number = place.numbers.remove(position);
        for (_, unit) in place.target.units() {
            unit.raise(Attention::LunsChanged);
        }
        let is_empty = place.numbers.is_empty();
        if is_empty && let Some(place) = map.targets.get_mut(usize::from(target)) {
            *place = None;
        }
        while map.targets.pop_if(|last| last.is_none()).is_some() {}
        if let Some(disk) = map.disks.get_mut(usize::from(number)) {
            *disk = None;
        }
        self.replace(current, map);
        self.events.raise(Event::removed(address));
        true
    }

    fn replace(&self, mut current: MutexGuard<'_, Arc<Map>>, map: Map) {
        *current = Arc::new(map);
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(current);
        // Workers let go of what is no more.
        self.mailboxes.iter().for_each(Mailbox::kick);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Map>> {
        // It is replaced whole, so that a panic elsewhere leaves nothing broken.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
