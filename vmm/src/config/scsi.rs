//! Where the SCSI disks of a configuration are: the numbers that were given, and those that were left out.
//!
//! Disks are on the first controller and its first target unless they say otherwise, and take the lowest logical unit
//! number that is free, in their order.

use devices::virtio::Address;
use toml::Spanned;

use super::parse::{BusKind, Disk};
use super::report::Diagnostic;

/// A disk's place on a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScsiPlace {
    /// Controllers are counted from 0.
    pub(crate) controller: u8,
    /// The place on it.
    pub(crate) address: Address,
}

/// Values that a key takes.
pub(super) const CONTROLLER_MOST: u16 = 15;
pub(super) const TARGET_MOST: u16 = 255;
pub(super) const LUN_MOST: u16 = Address::MOST_LUN;

/// The place of each disk, `None` for those that are no SCSI disks.
pub(super) fn places(disks: &[Disk]) -> Vec<Option<ScsiPlace>> {
    let given = |disk: &Disk| Some((bus_and_target(disk)?, value(&disk.lun)?));
    let mut taken: Vec<_> = disks.iter().filter_map(given).collect();
    let place = |disk: &Disk| {
        let on = bus_and_target(disk)?;
        let lun = match value(&disk.lun) {
            Some(lun) => lun,
            None => {
                let free = (0..=LUN_MOST).find(|lun| !taken.contains(&(on, *lun)))?;
                taken.push((on, free));
                free
            }
        };
        Some(ScsiPlace { controller: on.0, address: Address { target: on.1, lun } })
    };
    disks.iter().map(place).collect()
}

/// Controller and target of a SCSI disk.
fn bus_and_target(disk: &Disk) -> Option<(u8, u8)> {
    let number = |key| u8::try_from(value(key).unwrap_or(0)).ok();
    if disk.bus != BusKind::VirtioScsi {
        return None;
    }
    Some((number(&disk.controller)?, number(&disk.target)?))
}

fn value(key: &Option<Spanned<u16>>) -> Option<u16> {
    key.as_ref().map(|value| *value.get_ref())
}

/// The controller of a SCSI disk.
pub(super) fn controller(disk: &Disk) -> Option<u8> {
    bus_and_target(disk).map(|(controller, _)| controller)
}

/// The controllers there are: each takes a slot of the PCI bus.
pub(super) fn controllers(disks: &[Disk]) -> Vec<u8> {
    let mut found: Vec<u8> = disks.iter().filter_map(controller).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Adds what is wrong with the places of disks: numbers for a disk that has none, and a place given twice.
pub(super) fn check(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    for disk in disks.iter().filter(|disk| disk.bus != BusKind::VirtioScsi) {
        let keys = [("controller", &disk.controller), ("target", &disk.target), ("lun", &disk.lun)];
        for (key, value) in keys.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
        {
            diagnostics.push(
                Diagnostic::error(format!("`{key}` without `bus = \"virtio-scsi\"`"))
                    .at(value.span(), "only SCSI disks have one")
                    .help(format!("write `bus = \"virtio-scsi\"`, or leave `{key}` out")),
            );
        }
    }
    let given = disks.iter().filter_map(|disk| Some((bus_and_target(disk)?, disk.lun.as_ref()?)));
    let mut seen: Vec<((u8, u8), &Spanned<u16>)> = Vec::new();
    for (on, lun) in given {
        let same = |(other, before): &&((u8, u8), &Spanned<u16>)| {
            *other == on && before.get_ref() == lun.get_ref()
        };
        if let Some((_, first)) = seen.iter().find(same) {
            diagnostics.push(
                Diagnostic::error(format!("two disks are LUN {} of one target", lun.get_ref()))
                    .at(lun.span(), "and here again")
                    .related(first.span(), "first here")
                    .help("give each its own `lun`, or leave it out"),
            );
        } else {
            seen.push((on, lun));
        }
    }
}
