//! What the file alone tells across its tables: names used twice, too many devices or queues.

use std::fmt::Display;

use block::{CacheMode, DetectZeroes};
use toml::Spanned;

use super::parse::{Console, Disk, Source};
use super::report::{Diagnostic, Span};
use super::scsi;
use super::value::display_mac;

/// A PCI bus has 32 slots; the host bridge and the entropy device take one each.
const DEVICES_MAX: usize = 32 - 2;

/// Adds what is wrong between the parts of `source`.
pub(super) fn check(source: &Source, diagnostics: &mut Vec<Diagnostic>) {
    let ids = source.disks.iter().filter_map(|disk| disk.id.as_ref());
    let taps = source.nets.iter().filter_map(|net| net.tap.as_ref());
    let macs = source.nets.iter().filter_map(|net| net.mac.as_ref());
    twice("id", ids.map(|id| (id.get_ref(), id.span())), diagnostics);
    twice("tap", taps.map(|tap| (tap.get_ref(), tap.span())), diagnostics);
    twice("mac", macs.map(|mac| (display_mac(*mac.get_ref()), mac.span())), diagnostics);
    queues(source, diagnostics);
    slots(source, diagnostics);
    check_disks(&source.disks, diagnostics);
    scsi::check_controllers(&source.controllers, diagnostics);
    sockets(source, diagnostics);
}

/// Adds what is wrong with each disk by itself.
pub(super) fn check_disks(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    unsafe_cache(disks, diagnostics);
    deadlines(disks, diagnostics);
    zeroes(disks, diagnostics);
    scsi::check(disks, diagnostics);
}

/// Reports each value of `key` which was there before.
fn twice<T: Display + PartialEq>(
    key: &str,
    values: impl Iterator<Item = (T, Span)>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut seen: Vec<(T, Span)> = Vec::new();
    for (value, span) in values {
        match seen.iter().find(|(before, _)| *before == value) {
            Some((_, first)) => diagnostics.push(
                Diagnostic::error(format!("the {key} `{value}` is used twice"))
                    .at(span, "and here again")
                    .related(first.clone(), "first here")
                    .help(format!("give each its own `{key}`")),
            ),
            None => seen.push((value, span)),
        }
    }
}

/// A guest opens at most one queue per vCPU, so further ones would be threads for nothing.
fn queues(source: &Source, diagnostics: &mut Vec<Diagnostic>) {
    let Some(vcpus) = &source.machine.vcpus else { return };
    let limit = *vcpus.get_ref();
    let of_controllers = source.controllers.iter().filter_map(|scsi| scsi.queues.as_ref());
    let of_disks = source.disks.iter().filter_map(|disk| disk.queues.as_ref());
    let queues = of_disks.chain(of_controllers);
    for queues in queues.filter(|queues| *queues.get_ref() > limit) {
        diagnostics.push(
            Diagnostic::error("`queues` is more than the vCPUs")
                .at(queues.span(), "a guest uses at most one queue per vCPU")
                .related(vcpus.span(), format!("`vcpus` is {limit}"))
                .help(format!("write at most {limit}, or leave `queues` out")),
        );
    }
}

fn slots(source: &Source, diagnostics: &mut Vec<Diagnostic>) {
    // The first disk of a controller stands for it.
    let mut controllers = scsi::controllers(&source.disks, &[]);
    let used = controllers.clone();
    let mut takes_slot = |disk: &&Disk| match scsi::controller(disk) {
        Some(controller) => {
            let first = controllers.iter().position(|other| *other == controller);
            first.map(|place| controllers.remove(place)).is_some()
        }
        None => true,
    };
    let disks = source.disks.iter().filter(|disk| takes_slot(disk)).map(|disk| &disk.header);
    let is_empty = |number: &u8| !used.contains(number);
    let empty =
        source.controllers.iter().filter(|c| scsi::number(c).as_ref().is_some_and(is_empty));
    let empty = empty.map(|controller| &controller.header);
    let nets = source.nets.iter().map(|net| &net.header);
    let mut headers: Vec<_> = disks.chain(empty).chain(nets).collect();
    headers.sort_by_key(|header| header.start);
    if let Some(header) = headers.get(DEVICES_MAX) {
        let total = headers.len();
        diagnostics.push(
            Diagnostic::error(format!(
                "{total} disks, controllers and nets do not fit on the PCI bus"
            ))
            .at((*header).clone(), "no slot is left from here on")
            .help(format!(
                "keep at most {DEVICES_MAX} of them together, or put disks on one controller with \
                     `bus = \"virtio-scsi\"`"
            )),
        );
    }
}

/// A deadline for what is not held is a policy that someone believes in and does not have.
fn deadlines(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    let unheld = disks.iter().filter(|disk| !disk.holds);
    for deadline in unheld.filter_map(|disk| disk.hold_deadline.as_ref()) {
        diagnostics.push(
            Diagnostic::error("`hold_deadline` without `on_enospc = \"hold\"`")
                .at(deadline.span(), "nothing is held")
                .help("write `on_enospc = \"hold\"`, or leave `hold_deadline` out"),
        );
    }
}

/// Zeroes that may not be unmapped cannot be detected to be.
fn zeroes(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    let kept = disks.iter().filter(|disk| disk.discard == Some(false));
    let detected = kept.filter_map(|disk| disk.detect_zeroes.as_ref());
    for detect in detected.filter(|detect| *detect.get_ref() == DetectZeroes::Unmap) {
        diagnostics.push(
            Diagnostic::error("`detect_zeroes = \"unmap\"` with `discard = \"ignore\"`")
                .at(detect.span(), "no space is given back")
                .help("write `detect_zeroes = \"on\"`, or `discard = \"unmap\"`"),
        );
    }
}

fn unsafe_cache(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    let caches = disks.iter().filter_map(|disk| disk.cache.as_ref());
    for cache in caches.filter(|cache| *cache.get_ref() == CacheMode::Unsafe) {
        diagnostics.push(
            Diagnostic::warning("`cache = \"unsafe\"` ignores the guest's flushes")
                .at(Spanned::span(cache), "a host crash loses data the guest believes safe")
                .help("write \"writeback\" for a disk you want to keep"),
        );
    }
}

fn sockets(source: &Source, diagnostics: &mut Vec<Diagnostic>) {
    let (Console::Socket(console), Some(control)) = (&source.console, &source.control) else {
        return;
    };
    if console.get_ref() == control.get_ref() {
        diagnostics.push(
            Diagnostic::error("console and control have the same socket")
                .at(control.span(), "the second")
                .related(console.span(), "the first")
                .help("give each a path of its own"),
        );
    }
}
