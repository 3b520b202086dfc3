//! SCSI controllers and the addresses of disks on them. Pure.
//!
//! A disk is on target 0 of controller 0 unless its keys say otherwise. Without `lun` it gets the
//! lowest free LUN, in file order.

use devices::virtio::Address;

use super::limits::{LUN_MAX, default_queues};
use super::model::{ControllerConfig, ScsiAddress};
use super::report::{Diagnostic, Span};
use super::source::{BusKind, ControllerTable, DiskTable};

/// The address of each disk, `None` for virtio-blk disks.
pub(super) fn addresses(disks: &[DiskTable]) -> Vec<Option<ScsiAddress>> {
    let given = |disk: &DiskTable| Some((controller_and_target(disk)?, disk.lun?));
    let mut taken: Vec<_> = disks.iter().filter_map(given).collect();
    let address = |disk: &DiskTable| {
        let (controller, target) = controller_and_target(disk)?;
        let lun = match disk.lun {
            Some(lun) => lun,
            None => {
                let on_target = (controller, target);
                let free = (0..=LUN_MAX).find(|lun| !taken.contains(&(on_target, *lun)))?;
                taken.push((on_target, free));
                free
            }
        };
        Some(ScsiAddress { controller, address: Address { target, lun } })
    };
    disks.iter().map(address).collect()
}

/// The address of a SCSI disk that is attached to a running machine.
///
/// # Errors
///
/// The requested address is taken or, without `lun`, every address of the target.
pub(super) fn free_address(
    disk: &DiskTable,
    is_taken: impl Fn(ScsiAddress) -> bool,
) -> Result<ScsiAddress, ScsiAddress> {
    let (controller, target) = controller_and_target(disk).unwrap_or_default();
    let with_lun = |lun| ScsiAddress { controller, address: Address { target, lun } };
    let (first, last) = disk.lun.map_or((0, LUN_MAX), |lun| (lun, lun));
    let mut candidates = (first..=last).map(with_lun);
    candidates.find(|address| !is_taken(*address)).ok_or(with_lun(last))
}

fn controller_and_target(disk: &DiskTable) -> Option<(u8, u8)> {
    if disk.bus != BusKind::VirtioScsi {
        return None;
    }
    let number = |key: Option<u16>| u8::try_from(key.unwrap_or(0)).ok();
    Some((number(disk.controller)?, number(disk.target)?))
}

/// The controller of a SCSI disk.
pub(super) fn controller_of(disk: &DiskTable) -> Option<u8> {
    controller_and_target(disk).map(|(controller, _)| controller)
}

/// The number of a declared controller, if it is valid.
pub(super) fn declared_number(controller: &ControllerTable) -> Option<u8> {
    u8::try_from(*controller.number.as_ref()?.get_ref()).ok()
}

/// The numbers of all controllers, those of disks and declared ones, in ascending order.
pub(super) fn controller_numbers(disks: &[DiskTable], declared: &[ControllerTable]) -> Vec<u8> {
    let declared = declared.iter().filter_map(declared_number);
    let mut numbers: Vec<u8> = disks.iter().filter_map(controller_of).chain(declared).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// All controllers. Each has the largest number of queues that a disk or its declaration requests.
pub(super) fn controllers(
    disks: &[DiskTable],
    declared: &[ControllerTable],
    vcpus: u16,
) -> Vec<ControllerConfig> {
    let or_default = |queues: Option<u16>| queues.unwrap_or(default_queues(vcpus));
    let by_disks = disks.iter().map(|disk| (controller_of(disk), or_default(disk.queues)));
    let by_declaration = declared.iter().map(|declared| {
        let queues = declared.queues.as_ref().map(|queues| *queues.get_ref());
        (declared_number(declared), or_default(queues))
    });
    let requests: Vec<_> = by_disks.chain(by_declaration).collect();
    let queues = |number| {
        let of_controller = requests.iter().filter(|(of, _)| *of == Some(number));
        of_controller.map(|(_, queues)| *queues).max().unwrap_or(1)
    };
    let numbers = controller_numbers(disks, declared).into_iter();
    numbers.map(|number| ControllerConfig { number, queues: queues(number) }).collect()
}

/// Reports controllers that are declared twice.
pub(super) fn check_controllers(declared: &[ControllerTable], diagnostics: &mut Vec<Diagnostic>) {
    for (index, second) in declared.iter().enumerate() {
        let Some(number) = declared_number(second) else { continue };
        let mut before = declared.iter().take(index);
        if let Some(first) = before.find(|first| declared_number(first) == Some(number)) {
            diagnostics.push(
                Diagnostic::error(format!("SCSI controller {number} is declared twice"))
                    .at(second.header.clone(), "second declaration")
                    .related(first.header.clone(), "first declaration")
                    .help("give each its own `controller`, or remove one"),
            );
        }
    }
}

/// Reports SCSI keys on virtio-blk disks, and addresses that two disks share.
pub(super) fn check_addresses(disks: &[DiskTable], diagnostics: &mut Vec<Diagnostic>) {
    for disk in disks.iter().filter(|disk| disk.bus != BusKind::VirtioScsi) {
        for key in ["controller", "target", "lun"] {
            let Some(span) = disk.keys.span(key) else { continue };
            diagnostics.push(
                Diagnostic::error(format!("`{key}` without `bus = \"virtio-scsi\"`"))
                    .at(span, "only SCSI disks have this key")
                    .help(format!("write `bus = \"virtio-scsi\"`, or remove `{key}`")),
            );
        }
    }
    let given =
        |disk: &DiskTable| Some((controller_and_target(disk)?, disk.lun?, disk.keys.span("lun")?));
    let mut seen: Vec<((u8, u8), u16, Span)> = Vec::new();
    for (on_target, lun, span) in disks.iter().filter_map(given) {
        let same = seen.iter().find(|(other, before, _)| *other == on_target && *before == lun);
        if let Some((.., first)) = same {
            diagnostics.push(
                Diagnostic::error(format!("two disks have LUN {lun} on the same target"))
                    .at(span, "second use")
                    .related(first.clone(), "first use")
                    .help("give each its own `lun`, or remove the key"),
            );
        } else {
            seen.push((on_target, lun, span));
        }
    }
}
