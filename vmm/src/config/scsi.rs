//! SCSI controllers, and where disks are on them: the numbers that were given, and those that were left out.
//!
//! Disks are on the first controller and its first target unless they say otherwise, and take the lowest logical unit
//! number that is free, in their order.

use devices::virtio::Address;
use toml::Spanned;

use super::ControllerConfig;
use super::parse::{BusKind, Controller, Disk, default_queues};
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

/// The place of a SCSI disk beside others: that which it asks for, or the first that is not taken.
///
/// # Errors
///
/// It is taken, as is each other that the disk might have.
pub(super) fn place(
    disk: &Disk,
    is_taken: impl Fn(ScsiPlace) -> bool,
) -> Result<ScsiPlace, ScsiPlace> {
    let (controller, target) = bus_and_target(disk).unwrap_or_default();
    let at = |lun| ScsiPlace { controller, address: Address { target, lun } };
    let (first, last) = value(&disk.lun).map_or((0, LUN_MOST), |lun| (lun, lun));
    (first..=last).map(at).find(|place| !is_taken(*place)).ok_or(at(last))
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
pub(super) fn controllers(disks: &[Disk], declared: &[Controller]) -> Vec<u8> {
    let declared = declared.iter().filter_map(number);
    let mut found: Vec<u8> = disks.iter().filter_map(controller).chain(declared).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The number of a controller that is declared.
pub(super) fn number(declared: &Controller) -> Option<u8> {
    u8::try_from(value(&declared.number)?).ok()
}

/// The controllers of a guest with so many processors. Each has as many queues as the one of its disks that wants the most.
pub(super) fn built(disks: &[Disk], declared: &[Controller], vcpus: u16) -> Vec<ControllerConfig> {
    let wanted = |queues| value(queues).unwrap_or(default_queues(vcpus));
    let on_disks = disks.iter().map(|disk| (controller(disk), wanted(&disk.queues)));
    let said = declared.iter().map(|declared| (number(declared), wanted(&declared.queues)));
    let wishes: Vec<_> = on_disks.chain(said).collect();
    let queues = |number| {
        let of_it = wishes.iter().filter(|(of, _)| *of == Some(number));
        of_it.map(|(_, queues)| *queues).max().unwrap_or(1)
    };
    let numbers = controllers(disks, declared).into_iter();
    numbers.map(|number| ControllerConfig { number, queues: queues(number) }).collect()
}

/// Adds controllers that are declared twice.
pub(super) fn check_controllers(declared: &[Controller], diagnostics: &mut Vec<Diagnostic>) {
    for (index, second) in declared.iter().enumerate() {
        let before = declared.iter().take(index);
        let mut same =
            before.filter(|first| number(first).is_some_and(|n| Some(n) == number(second)));
        if let (Some(first), Some(n)) = (same.next(), number(second)) {
            diagnostics.push(
                Diagnostic::error(format!("the SCSI controller {n} is declared twice"))
                    .at(second.header.clone(), "and here again")
                    .related(first.header.clone(), "first here")
                    .help("give each its own `controller`, or keep one"),
            );
        }
    }
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
