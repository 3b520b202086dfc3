//! The disks of a controller by address and by number.
//!
//! A disk's number identifies it in the request queues. It is not reused while a queue may refer to
//! the disk.

use std::sync::Arc;

use super::address::Address;
use super::disk::AttachedDisk;
use crate::scsi::{Attention, Target};

/// Why a disk cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Another disk has the address.
    #[error("target {0}, LUN {1} is taken")]
    Taken(u8, u16),
    /// The logical unit number is out of range.
    #[error("LUN {0} is above {max}", max = Address::MAX_LUN)]
    LunTooHigh(u16),
    /// The controller has the maximum number of disks.
    #[error("the controller has {max} disks already", max = u16::MAX)]
    Full,
}

/// An immutable map of the disks. A change replaces the map.
#[derive(Clone, Default)]
pub(super) struct DiskMap {
    /// By target; the last entry is in use.
    targets: Vec<Option<TargetEntry>>,
    /// By number of the disk.
    disks: Vec<Option<Arc<AttachedDisk>>>,
}

/// A target and the numbers of its disks.
#[derive(Clone, Default)]
pub(super) struct TargetEntry {
    pub(super) target: Target,
    /// In the order of the target's units.
    numbers: Vec<u16>,
}

impl TargetEntry {
    /// Number of the disk with this logical unit number.
    pub(super) fn disk(&self, lun: u16) -> Option<u16> {
        self.numbers.get(self.target.position(lun)?).copied()
    }
}

impl DiskMap {
    pub(super) fn target(&self, target: u8) -> Option<&TargetEntry> {
        self.targets.get(usize::from(target))?.as_ref()
    }

    /// The disk with a number.
    pub(super) fn disk(&self, number: u16) -> Option<&Arc<AttachedDisk>> {
        self.disks.get(usize::from(number))?.as_ref()
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = &Arc<AttachedDisk>> {
        self.disks.iter().flatten()
    }

    /// The highest target with a disk, or 0.
    pub(super) fn highest_target(&self) -> u8 {
        u8::try_from(self.targets.len().saturating_sub(1)).unwrap_or(u8::MAX)
    }

    /// The lowest number that no disk had; `None` if all numbers were used.
    pub(super) fn unused_number(&self) -> Option<u16> {
        u16::try_from(self.disks.len()).ok().filter(|next| *next < u16::MAX)
    }

    pub(super) fn add(&mut self, number: u16, disk: Arc<AttachedDisk>) -> Result<(), AttachError> {
        let Address { target, lun } = disk.address;
        let index = usize::from(target);
        if self.targets.len() <= index {
            self.targets.resize_with(index + 1, || None);
        }
        let Some(entry) = self.targets.get_mut(index) else { return Err(AttachError::Full) };
        let entry = entry.get_or_insert_default();
        if !entry.target.add(lun, Arc::clone(&disk.unit)) {
            return Err(AttachError::Taken(target, lun));
        }
        entry.numbers.insert(entry.target.position(lun).unwrap_or(0), number);
        let index = usize::from(number);
        if self.disks.len() <= index {
            self.disks.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.disks.get_mut(index) {
            *slot = Some(disk);
        }
        Ok(())
    }

    /// Removes the disk with an address. Returns it with its number.
    pub(super) fn remove(&mut self, address: Address) -> Option<(u16, Arc<AttachedDisk>)> {
        let Address { target, lun } = address;
        let entry = self.targets.get_mut(usize::from(target))?.as_mut()?;
        let position = entry.target.position(lun)?;
        entry.target.remove(lun);
        let number = entry.numbers.remove(position);
        if entry.numbers.is_empty()
            && let Some(entry) = self.targets.get_mut(usize::from(target))
        {
            *entry = None;
        }
        while self.targets.pop_if(|last| last.is_none()).is_some() {}
        Some((number, self.disks.get_mut(usize::from(number))?.take()?))
    }

    /// Raises REPORTED LUNS DATA HAS CHANGED on the other units of a target (SPC-4 §6.33).
    pub(super) fn announce_luns_changed(&self, changed: Address) {
        let entry = self.target(changed.target);
        let units = entry.into_iter().flat_map(|entry| entry.target.units());
        for (_, unit) in units.filter(|(lun, _)| *lun != changed.lun) {
            unit.raise(Attention::LunsChanged);
        }
    }
}
