//! The result of `bulkhead disk inspect`, as text and as JSON. Pure, except for process names.

use std::collections::BTreeMap;

use block::{
    DiscardLimits, Extent, FormatVerdict, Geometry, ImageFormat, ImageLock, Named, ProbedFormat,
    StoreSpace, Survey,
};
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::extent_map::percent;
use super::facts::{Fact, Facts};
use super::layer_rows;
use super::selection::SelectedDisk;
use super::stack_tree;
use crate::config::{DiskConfig, human_size};
use crate::process;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();

/// Everything known about a disk.
pub(super) struct Inspection<'d> {
    selected: &'d SelectedDisk,
    survey: &'d Survey,
    facts: &'d Facts,
}

/// The fact as shown by `show`, or the reason that it is missing.
fn shown<T>(fact: &Fact<T>, show: impl FnOnce(&T) -> String) -> String {
    match fact {
        Ok(fact) => show(fact),
        Err(reason) => unlearned(reason),
    }
}

fn unlearned(reason: &str) -> String {
    format!("could not be learned: {}", sanitize(reason))
}

#[derive(Clone, Copy, Debug, Default)]
struct ExtentSum {
    extents: usize,
    bytes: u64,
}

impl ExtentSum {
    /// The extents of data, or the holes.
    fn of(extents: &[Extent], data: bool) -> Self {
        let matching = extents.iter().filter(|extent| extent.data == data);
        matching.fold(Self::default(), |sum, extent| Self {
            extents: sum.extents + 1,
            bytes: sum.bytes + extent.range.len,
        })
    }

    fn text(self) -> String {
        let extents = if self.extents == 1 { "extent" } else { "extents" };
        format!("{} in {} {extents}", human_size(self.bytes), self.extents)
    }

    fn json(self) -> Value {
        json!({ "bytes": self.bytes, "extents": self.extents })
    }
}

impl<'d> Inspection<'d> {
    pub(super) fn new(selected: &'d SelectedDisk, survey: &'d Survey, facts: &'d Facts) -> Self {
        Self { selected, survey, facts }
    }

    pub(super) fn text(&self) -> String {
        let Geometry { capacity, logical_block, physical_block, .. } = self.survey.geometry;
        let volume = self.facts.space.as_ref().ok().and_then(|space| space.volume.as_deref());
        let kind = match volume {
            Some(dataset) => format!("ZFS volume {}", sanitize(dataset)),
            None if self.survey.is_block_device() => "block device".to_owned(),
            None if self.facts.layer.is_some() => "file of a layer".to_owned(),
            None => "image file".to_owned(),
        };
        let path = sanitize(&self.selected.path.display().to_string());
        let size = human_size(capacity);
        let blocks = format!("in blocks of {logical_block} ({physical_block} physical)");
        let mut rows =
            vec![("size", format!("{capacity} bytes, {blocks}")), ("allocated", self.allocated())];
        match &self.facts.layer {
            Some(Ok(layer)) => rows.extend(layer_rows::text(layer)),
            Some(Err(reason)) => rows.push(("layer", unlearned(reason))),
            None => rows.push(("format", shown(&self.facts.format, format_text))),
        }
        if !self.survey.is_block_device() {
            let extents = &self.facts.extents;
            rows.push(("data", shown(extents, |extents| ExtentSum::of(extents, true).text())));
            rows.push(("holes", shown(extents, |extents| ExtentSum::of(extents, false).text())));
        }
        rows.push(("granularity", shown(&self.facts.discard, |limits| granularity(*limits))));
        let dropped = self.survey.dropped.iter();
        rows.extend(dropped.map(|limit| ("not offered", limit.to_string())));
        rows.push(("a trim frees", self.reclaimable()));
        rows.push(("cache mode", self.cache_mode()));
        rows.push(("used by", shown(&self.facts.lock, |lock| user(*lock))));
        rows.push(("stored on", shown(&self.facts.space, store)));
        let stack = &self.facts.stack;
        rows.push(("a flush is", shown(stack, stack_tree::flush_promise)));
        rows.push(("direct I/O", shown(stack, stack_tree::stable_copies)));
        let rows: String =
            rows.iter().map(|(name, value)| format!("  {name:<12}  {value}\n")).collect();
        let tree = stack.as_ref().map_or_else(|_| String::new(), stack_tree::draw);
        format!("{BOLD}{path}{BOLD:#}: {kind}, {size}\n\n{rows}{tree}")
    }

    /// Bytes allocated in the file system of an image or the pool of a volume.
    fn allocated_bytes(&self) -> Fact<Option<u64>> {
        match (self.survey.allocated, &self.facts.space) {
            (Some(bytes), _) => Ok(Some(bytes)),
            (None, Ok(space)) => Ok(space.allocated),
            (None, Err(reason)) => Err(reason.clone()),
        }
    }

    fn allocated(&self) -> String {
        shown(&self.allocated_bytes(), |allocated| match *allocated {
            Some(bytes) => {
                let share = percent(bytes, self.survey.geometry.capacity);
                format!("{} of the host's space ({share} of its size)", human_size(bytes))
            }
            None => "not reported by the device".to_owned(),
        })
    }

    fn reclaimable(&self) -> String {
        match (&self.facts.discard, &self.facts.zeroes, self.allocated_bytes()) {
            (Ok(None), ..) => "nothing".to_owned(),
            (_, Some(zeroes), _) => shown(zeroes, |zeroes| {
                let zeroes = human_size(*zeroes);
                format!(
                    "at least the {zeroes} of zeroes; only the guest knows its further free space"
                )
            }),
            (_, None, Ok(Some(allocated))) => format!(
                "at most {}, as far as the guest does not use it; --scan counts zeroes",
                human_size(allocated)
            ),
            (_, None, Ok(None) | Err(_)) => {
                "the space that the guest does not use; --scan counts zeroes".to_owned()
            }
        }
    }

    fn cache_mode(&self) -> String {
        match &self.selected.config {
            Some(config) => config.options.cache.name().to_owned(),
            None => "set in a machine's configuration; name it with --config".to_owned(),
        }
    }

    pub(super) fn json(&self) -> String {
        let Facts { discard, space, lock, format, stack, extents, layer, zeroes } = self.facts;
        let is_block_device = self.survey.is_block_device();
        // A block device does not report its extents.
        let sum = |data| match extents {
            Ok(extents) if !is_block_device => ExtentSum::of(extents, data).json(),
            _ => Value::Null,
        };
        let unknown = [
            ("discard", discard.as_ref().err()),
            ("backing", space.as_ref().err()),
            ("lock", lock.as_ref().err()),
            ("format", format.as_ref().err()),
            ("stack", stack.as_ref().err()),
            ("data", extents.as_ref().err()),
            ("layer", layer.as_ref().and_then(|layer| layer.as_ref().err())),
            ("zero_bytes", zeroes.as_ref().and_then(|zeroes| zeroes.as_ref().err())),
        ];
        let unknown: BTreeMap<_, _> =
            unknown.into_iter().filter_map(|(name, reason)| Some((name, reason?))).collect();
        let geometry = self.survey.geometry;
        let space = space.as_ref().ok();
        let answer = json!({
            "path": self.selected.path.display().to_string(),
            "id": self.selected.config.as_ref().map(DiskConfig::id),
            "kind": if is_block_device { "block device" } else { "file" },
            "zfs_volume": space.and_then(|space| space.volume.as_ref()),
            "size_bytes": geometry.capacity,
            "logical_block_bytes": geometry.logical_block,
            "physical_block_bytes": geometry.physical_block,
            "optimal_io_bytes": geometry.optimal_io,
            "not_offered": self.survey.dropped.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "allocated_bytes": self.allocated_bytes().ok().flatten(),
            "data": sum(true),
            "holes": sum(false),
            "discard": discard.as_ref().ok().copied().flatten().map(|limits| json!({
                "granularity_bytes": limits.granularity,
                "alignment_bytes": limits.alignment,
            })),
            "zero_bytes": zeroes.as_ref().and_then(|zeroes| zeroes.as_ref().ok()),
            "cache": self.selected.config.as_ref().map(|config| config.options.cache.name()),
            "lock": lock.as_ref().map_or(Value::Null, |lock| lock_json(*lock)),
            "format": format.as_ref().map_or(Value::Null, |(probed, _)| json!({
                "signature": probed.found.map(ImageFormat::name),
                "is_raw": is_raw(probed),
            })),
            "layer": layer.as_ref().and_then(|layer| layer.as_ref().ok()).map(layer_rows::json),
            "backing": space.and_then(|space| space.backing).map(|space| json!({
                "used_bytes": space.used,
                "available_bytes": space.available,
            })),
            "stack": stack.as_ref().ok().map(stack_tree::json),
            "unknown": unknown,
        });
        format!("{answer:#}\n")
    }
}

/// Whether the bytes are those of the disk: the image has no signature of a format, or a disk has
/// opened it for writing before.
fn is_raw(probed: &ProbedFormat) -> bool {
    probed.is_marked || probed.found.is_none_or(ImageFormat::is_content)
}

fn format_text((probed, verdict): &(ProbedFormat, FormatVerdict)) -> String {
    match (probed.found, verdict) {
        (Some(found), FormatVerdict::Foreign { remedy, .. }) => {
            format!("{found}, not raw: {}", sanitize(remedy))
        }
        (Some(found), _) if !is_raw(probed) => format!("raw, or {found}: it has the signature"),
        (Some(found), _) => format!("raw, with the signature of {found}"),
        (None, _) => "raw".to_owned(),
    }
}

fn granularity(discard: Option<DiscardLimits>) -> String {
    match discard {
        Some(DiscardLimits { granularity, alignment: 0, .. }) => {
            format!("the host frees multiples of {}", human_size(granularity.into()))
        }
        Some(DiscardLimits { granularity, alignment, .. }) => format!(
            "the host frees multiples of {}, from an offset of {}",
            human_size(granularity.into()),
            human_size(alignment.into())
        ),
        None => "the host cannot discard".to_owned(),
    }
}

fn user(lock: ImageLock) -> String {
    let process = |pid: Option<u32>| {
        pid.map_or_else(|| "a process that only root can identify".to_owned(), process::describe)
    };
    match lock {
        ImageLock::Free => "no process".to_owned(),
        ImageLock::Shared { pid } => format!("{}, which reads it", process(pid)),
        ImageLock::Exclusive { pid } => format!("{}, which writes it", process(pid)),
    }
}

fn lock_json(lock: ImageLock) -> Value {
    let (state, pid) = match lock {
        ImageLock::Free => ("free", None),
        ImageLock::Shared { pid } => ("shared", pid),
        ImageLock::Exclusive { pid } => ("exclusive", pid),
    };
    json!({ "state": state, "pid": pid })
}

fn store(space: &StoreSpace) -> String {
    match space.backing {
        Some(space) => format!(
            "{} used of {} ({}), {} left",
            human_size(space.used),
            human_size(space.total()),
            percent(space.used, space.total()),
            human_size(space.available)
        ),
        None => "a store whose free space the host does not report".to_owned(),
    }
}
