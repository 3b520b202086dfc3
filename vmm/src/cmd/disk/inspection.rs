//! The result of `bulkhead disk inspect`, as text and as JSON. Pure, except for process names.

use std::fs;

use block::{DiscardLimits, Extent, Geometry, ImageLock, Named, Survey};
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::extent_map::percent;
use super::selection::SelectedDisk;
use crate::cmd::sanitize::sanitize;
use crate::config::{DiskConfig, human_size};

const BOLD: Style = Style::new().bold();

/// Everything known about a disk.
pub(super) struct Inspection<'d> {
    selected: &'d SelectedDisk,
    survey: &'d Survey,
    data: ExtentSum,
    holes: ExtentSum,
    /// Bytes in whole granules of zeroes, if they were counted.
    zeroes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ExtentSum {
    extents: usize,
    bytes: u64,
}

impl ExtentSum {
    fn of<'e>(extents: impl Iterator<Item = &'e Extent>) -> Self {
        extents.fold(Self::default(), |sum, extent| Self {
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
    pub(super) fn new(
        selected: &'d SelectedDisk,
        survey: &'d Survey,
        extents: &[Extent],
        zeroes: Option<u64>,
    ) -> Self {
        let data = ExtentSum::of(extents.iter().filter(|extent| extent.data));
        let holes = ExtentSum::of(extents.iter().filter(|extent| !extent.data));
        Self { selected, survey, data, holes, zeroes }
    }

    pub(super) fn text(&self) -> String {
        let Geometry { capacity, logical_block, physical_block, .. } = self.survey.geometry;
        let kind = match &self.survey.volume {
            Some(dataset) => format!("ZFS volume {}", sanitize(dataset)),
            None if self.survey.is_block_device => "block device".to_owned(),
            None => "image file".to_owned(),
        };
        let path = sanitize(&self.selected.path.display().to_string());
        let size = human_size(capacity);
        let mut rows = vec![
            (
                "size",
                format!(
                    "{capacity} bytes, in blocks of {logical_block} ({physical_block} physical)"
                ),
            ),
            ("allocated", self.allocated()),
        ];
        if !self.survey.is_block_device {
            rows.push(("data", self.data.text()));
            rows.push(("holes", self.holes.text()));
        }
        rows.push(("granularity", self.granularity()));
        rows.push(("a trim frees", self.reclaimable()));
        rows.push(("cache mode", self.cache_mode()));
        rows.push(("used by", self.user()));
        rows.push(("stored on", self.store()));
        let rows: String =
            rows.iter().map(|(name, value)| format!("  {name:<12}  {value}\n")).collect();
        format!("{BOLD}{path}{BOLD:#}: {kind}, {size}\n\n{rows}")
    }

    fn allocated(&self) -> String {
        match self.survey.allocated {
            Some(bytes) => {
                let share = percent(bytes, self.survey.geometry.capacity);
                format!("{} of the host's space ({share} of its size)", human_size(bytes))
            }
            None => "not reported by the device".to_owned(),
        }
    }

    fn granularity(&self) -> String {
        match self.survey.geometry.discard {
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

    fn reclaimable(&self) -> String {
        match (self.survey.geometry.discard, self.zeroes, self.survey.allocated) {
            (None, ..) => "nothing".to_owned(),
            (_, Some(zeroes), _) => format!(
                "at least the {} of zeroes; only the guest knows its further free space",
                human_size(zeroes)
            ),
            (_, None, Some(allocated)) => format!(
                "at most {}, as far as the guest does not use it; --scan counts zeroes",
                human_size(allocated)
            ),
            (_, None, None) => {
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

    fn user(&self) -> String {
        let process = |pid: Option<u32>| match pid {
            Some(pid) => format!("process {pid}{}", name_of(pid)),
            None => "a process that only root can identify".to_owned(),
        };
        match self.survey.lock {
            ImageLock::Free => "no process".to_owned(),
            ImageLock::Shared { pid } => format!("{}, which reads it", process(pid)),
            ImageLock::Exclusive { pid } => format!("{}, which writes it", process(pid)),
        }
    }

    fn store(&self) -> String {
        match self.survey.backing {
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

    pub(super) fn json(&self) -> String {
        let Survey { geometry, allocated, backing, is_block_device, volume, lock, .. } =
            self.survey;
        // A block device does not report its extents.
        let reported = |sum: ExtentSum| if *is_block_device { Value::Null } else { sum.json() };
        let (lock, pid) = match *lock {
            ImageLock::Free => ("free", None),
            ImageLock::Shared { pid } => ("shared", pid),
            ImageLock::Exclusive { pid } => ("exclusive", pid),
        };
        let answer = json!({
            "path": self.selected.path.display().to_string(),
            "id": self.selected.config.as_ref().map(DiskConfig::id),
            "kind": if *is_block_device { "block device" } else { "file" },
            "zfs_volume": volume,
            "size_bytes": geometry.capacity,
            "logical_block_bytes": geometry.logical_block,
            "physical_block_bytes": geometry.physical_block,
            "allocated_bytes": allocated,
            "data": reported(self.data),
            "holes": reported(self.holes),
            "discard": geometry.discard.map(|limits| json!({
                "granularity_bytes": limits.granularity,
                "alignment_bytes": limits.alignment,
            })),
            "zero_bytes": self.zeroes,
            "cache": self.selected.config.as_ref().map(|config| config.options.cache.name()),
            "lock": { "state": lock, "pid": pid },
            "backing": backing.map(|space| json!({
                "used_bytes": space.used,
                "available_bytes": space.available,
            })),
        });
        format!("{answer:#}\n")
    }
}

/// The name of a process, in parentheses.
fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = sanitize(name.trim_end());
    if name.is_empty() { name } else { format!(" ({name})") }
}
