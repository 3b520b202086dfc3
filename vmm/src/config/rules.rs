//! Rules between the tables of a file: unique names, number of devices and queues. Pure.

use std::fmt::Display;

use block::{CacheMode, DetectZeroes, ImageLocking, OnEnospc};

use super::report::{Diagnostic, Span};
use super::source::{ConsoleTable, DiskTable, MachineSource};
use super::value::display_mac;
use super::{ephemeral, scsi};

/// A PCI bus has 32 slots; the host bridge and the entropy device take one each.
const DEVICES_MAX: usize = 32 - 2;

/// Reports inconsistencies between the tables of `source`.
pub(super) fn check(source: &MachineSource, diagnostics: &mut Vec<Diagnostic>) {
    let ids =
        source.disks.iter().filter_map(|disk| Some((&disk.options.id, disk.keys.span("id")?)));
    let taps = source.nets.iter().filter_map(|net| net.tap.as_ref());
    let macs = source.nets.iter().filter_map(|net| net.mac.as_ref());
    check_unique("id", ids, diagnostics);
    check_unique("tap", taps.map(|tap| (tap.get_ref(), tap.span())), diagnostics);
    check_unique("mac", macs.map(|mac| (display_mac(*mac.get_ref()), mac.span())), diagnostics);
    check_queues(source, diagnostics);
    check_slots(source, diagnostics);
    check_disks(&source.disks, diagnostics);
    scsi::check_controllers(&source.controllers, diagnostics);
    check_sockets(source, diagnostics);
}

/// Reports inconsistencies between the keys of each disk.
pub(super) fn check_disks(disks: &[DiskTable], diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.extend(disks.iter().filter_map(check_cache));
    diagnostics.extend(disks.iter().filter_map(check_lock));
    diagnostics.extend(disks.iter().filter_map(check_hold_deadline));
    diagnostics.extend(disks.iter().filter_map(check_detect_zeroes));
    diagnostics.extend(disks.iter().filter_map(check_create));
    diagnostics.extend(disks.iter().filter_map(check_record));
    ephemeral::check(disks, diagnostics);
    scsi::check_addresses(disks, diagnostics);
}

/// Reports each value of `key` that is used a second time.
fn check_unique<T: Display + PartialEq>(
    key: &str,
    values: impl Iterator<Item = (T, Span)>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut seen: Vec<(T, Span)> = Vec::new();
    for (value, span) in values {
        match seen.iter().find(|(before, _)| *before == value) {
            Some((_, first)) => diagnostics.push(
                Diagnostic::error(format!("the {key} `{value}` is used twice"))
                    .at(span, "second use")
                    .related(first.clone(), "first use")
                    .help(format!("give each its own `{key}`")),
            ),
            None => seen.push((value, span)),
        }
    }
}

/// A guest uses at most one queue per vCPU; the threads of further queues would be idle.
fn check_queues(source: &MachineSource, diagnostics: &mut Vec<Diagnostic>) {
    let Some(vcpus) = &source.machine.vcpus else { return };
    let limit = *vcpus.get_ref();
    let of_disks =
        source.disks.iter().filter_map(|disk| Some((disk.queues?, disk.keys.span("queues")?)));
    let of_controllers = source.controllers.iter().filter_map(|scsi| scsi.queues.as_ref());
    let of_controllers = of_controllers.map(|queues| (*queues.get_ref(), queues.span()));
    for (_, span) in of_disks.chain(of_controllers).filter(|(queues, _)| *queues > limit) {
        diagnostics.push(
            Diagnostic::error("`queues` exceeds the number of vCPUs")
                .at(span, "a guest uses at most one queue per vCPU")
                .related(vcpus.span(), format!("`vcpus` is {limit}"))
                .help(format!("write at most {limit}, or remove `queues`")),
        );
    }
}

/// Reports more PCI devices than there are slots. All disks of a SCSI controller share its slot.
fn check_slots(source: &MachineSource, diagnostics: &mut Vec<Diagnostic>) {
    let mut controllers = scsi::controller_numbers(&source.disks, &[]);
    let used = controllers.clone();
    // The first disk of a controller takes the slot.
    let mut takes_slot = |disk: &&DiskTable| match scsi::controller_of(disk) {
        Some(controller) => {
            let first = controllers.iter().position(|other| *other == controller);
            first.map(|index| controllers.remove(index)).is_some()
        }
        None => true,
    };
    let disks = source.disks.iter().filter(|disk| takes_slot(disk)).map(|disk| &disk.header);
    let has_no_disk = |number: u8| !used.contains(&number);
    let empty = source
        .controllers
        .iter()
        .filter(|controller| scsi::declared_number(controller).is_some_and(has_no_disk))
        .map(|controller| &controller.header);
    let nets = source.nets.iter().map(|net| &net.header);
    let mut headers: Vec<_> = disks.chain(empty).chain(nets).collect();
    headers.sort_by_key(|header| header.start);
    if let Some(header) = headers.get(DEVICES_MAX) {
        let total = headers.len();
        let message = format!("{total} disks, controllers and nets do not fit on the PCI bus");
        let help = format!(
            "keep at most {DEVICES_MAX} of them, or put disks on one controller with \
             `bus = \"virtio-scsi\"`"
        );
        let label = "no free slot from here on";
        diagnostics.push(Diagnostic::error(message).at((*header).clone(), label).help(help));
    }
}

fn check_cache(disk: &DiskTable) -> Option<Diagnostic> {
    let is_unsafe = disk.options.cache == CacheMode::Unsafe && disk.ephemeral.is_none();
    let span = disk.keys.span("cache").filter(|_| is_unsafe)?;
    Some(
        Diagnostic::warning("`cache = \"unsafe\"` ignores the guest's flushes")
            .at(span, "a host crash loses data that the guest has flushed")
            .help("write \"writeback\" for a disk whose data matters"),
    )
}

fn check_lock(disk: &DiskTable) -> Option<Diagnostic> {
    let span = disk.keys.span("lock").filter(|_| disk.options.lock == ImageLocking::Off)?;
    Some(
        Diagnostic::warning("`lock = \"off\"` does not keep other machines off the image")
            .at(span, "a second machine that writes the image destroys its data")
            .help("write \"on\", unless the file system of the image has no locks"),
    )
}

/// A deadline without hold would look like a policy and have no effect.
fn check_hold_deadline(disk: &DiskTable) -> Option<Diagnostic> {
    let is_report = disk.options.on_enospc == OnEnospc::Report;
    let span = disk.keys.span("hold_deadline").filter(|_| is_report)?;
    Some(
        Diagnostic::error("`hold_deadline` without `on_enospc = \"hold\"`")
            .at(span, "has no effect: writes are not held")
            .help("write `on_enospc = \"hold\"`, or remove `hold_deadline`"),
    )
}

fn check_detect_zeroes(disk: &DiskTable) -> Option<Diagnostic> {
    let is_unmap = disk.options.detect_zeroes == DetectZeroes::Unmap;
    let span = disk.keys.span("detect_zeroes").filter(|_| is_unmap && !disk.options.discard)?;
    Some(
        Diagnostic::error("`detect_zeroes = \"unmap\"` with `discard = \"ignore\"`")
            .at(span, "no space can be freed")
            .help("write `detect_zeroes = \"on\"`, or `discard = \"unmap\"`"),
    )
}

/// Only a layer is made at a start: an empty image is of no use to a guest.
fn check_create(disk: &DiskTable) -> Option<Diagnostic> {
    let span = disk.keys.span("create").filter(|_| disk.create && disk.base.is_none())?;
    let has_base = disk.keys.is_invalid("base");
    (!has_base).then(|| {
        Diagnostic::error("`create = true` without `base`")
            .at(span, "there is nothing to make a layer over")
            .help("name the image below the layer with `base`, or remove `create`")
    })
}

/// Reads are not recorded, and a limit is that of a log.
fn check_record(disk: &DiskTable) -> Option<Diagnostic> {
    let limit = disk.keys.span("record_limit").filter(|_| disk.keys.span("record").is_none());
    if let Some(span) = limit {
        return Some(
            Diagnostic::error("`record_limit` without `record`")
                .at(span, "limits nothing")
                .help("name the log with `record`, or remove `record_limit`"),
        );
    }
    let span = disk.keys.span("record").filter(|_| disk.options.read_only)?;
    Some(
        Diagnostic::error("`record` with `readonly = true`")
            .at(span, "there is nothing to record")
            .related(disk.keys.span("readonly")?, "the disk is not written")
            .help("remove one of them"),
    )
}

fn check_sockets(source: &MachineSource, diagnostics: &mut Vec<Diagnostic>) {
    let (ConsoleTable::Socket(console), Some(control)) = (&source.console, &source.control) else {
        return;
    };
    if console.get_ref() == control.get_ref() {
        diagnostics.push(
            Diagnostic::error("`[console]` and `[control]` use the same socket")
                .at(control.span(), "second use")
                .related(console.span(), "first use")
                .help("give each its own path"),
        );
    }
}
