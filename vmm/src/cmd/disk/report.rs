//! What is said of a disk, for people and for programs. Pure but for the names of processes.

use std::fs;

use block::{DiscardLimits, Extent, Geometry, ImageLock, Named, Survey};
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::Found;
use super::extent_map::percent;
use crate::config::{DiskConfig, human_size};
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();

/// All there is to say.
pub(super) struct Inspection<'d> {
    found: &'d Found,
    survey: &'d Survey,
    data: Sum,
    holes: Sum,
    /// Bytes of whole granules that hold only zeroes, if they were counted.
    zeroes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    extents: usize,
    bytes: u64,
}

impl Sum {
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
        found: &'d Found,
        survey: &'d Survey,
        extents: &[Extent],
        zeroes: Option<u64>,
    ) -> Self {
        let data = Sum::of(extents.iter().filter(|extent| extent.data));
        let holes = Sum::of(extents.iter().filter(|extent| !extent.data));
        Self { found, survey, data, holes, zeroes }
    }

    pub(super) fn text(&self) -> String {
        let Geometry { capacity, logical_block, physical_block, .. } = self.survey.geometry;
        let kind = match &self.survey.volume {
            Some(dataset) => format!("ZFS volume {}", sanitize(dataset)),
            None if self.survey.is_block_device => "block device".to_owned(),
            None => "image file".to_owned(),
        };
        let path = sanitize(&self.found.path.display().to_string());
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
            None => "only what holds the device knows".to_owned(),
        }
    }

    fn granularity(&self) -> String {
        match self.survey.geometry.discard {
            Some(DiscardLimits { granularity, alignment: 0, .. }) => {
                format!("the host frees {} at a time", human_size(granularity.into()))
            }
            Some(DiscardLimits { granularity, alignment, .. }) => format!(
                "the host frees {} at a time, the first at {}",
                human_size(granularity.into()),
                human_size(alignment.into())
            ),
            None => "nothing can be discarded here".to_owned(),
        }
    }

    fn reclaimable(&self) -> String {
        match (self.survey.geometry.discard, self.zeroes, self.survey.allocated) {
            (None, ..) => "nothing".to_owned(),
            (_, Some(zeroes), _) => format!(
                "{} at least: so much holds only zeroes; the guest knows what else it does not use",
                human_size(zeroes)
            ),
            (_, None, Some(allocated)) => format!(
                "at most {}: what the guest does not use of it; --scan counts what is zero",
                human_size(allocated)
            ),
            (_, None, None) => "what the guest does not use; --scan counts what is zero".to_owned(),
        }
    }

    fn cache_mode(&self) -> String {
        match &self.found.config {
            Some(config) => config.options.cache.name().to_owned(),
            None => "a machine's configuration says; name it with --config".to_owned(),
        }
    }

    fn user(&self) -> String {
        let who = |pid: Option<u32>| match pid {
            Some(pid) => format!("process {pid}{}", name_of(pid)),
            None => "a process that only root may see".to_owned(),
        };
        match self.survey.lock {
            ImageLock::Free => "nobody".to_owned(),
            ImageLock::Shared { pid } => format!("{}, to read it", who(pid)),
            ImageLock::Exclusive { pid } => format!("{}, to write it", who(pid)),
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
            None => "the host does not say how much space is left".to_owned(),
        }
    }

    pub(super) fn json(&self) -> String {
        let Survey { geometry, allocated, backing, is_block_device, volume, lock, .. } =
            self.survey;
        // A block device does not tell what is where.
        let told = |sum: Sum| if *is_block_device { Value::Null } else { sum.json() };
        let (lock, pid) = match *lock {
            ImageLock::Free => ("free", None),
            ImageLock::Shared { pid } => ("shared", pid),
            ImageLock::Exclusive { pid } => ("exclusive", pid),
        };
        let answer = json!({
            "path": self.found.path.display().to_string(),
            "id": self.found.config.as_ref().map(DiskConfig::id),
            "kind": if *is_block_device { "block device" } else { "file" },
            "zfs_volume": volume,
            "size_bytes": geometry.capacity,
            "logical_block_bytes": geometry.logical_block,
            "physical_block_bytes": geometry.physical_block,
            "allocated_bytes": allocated,
            "data": told(self.data),
            "holes": told(self.holes),
            "discard": geometry.discard.map(|limits| json!({
                "granularity_bytes": limits.granularity,
                "alignment_bytes": limits.alignment,
            })),
            "zero_bytes": self.zeroes,
            "cache": self.found.config.as_ref().map(|config| config.options.cache.name()),
            "lock": { "state": lock, "pid": pid },
            "backing": backing.map(|space| json!({
                "used_bytes": space.used,
                "available_bytes": space.available,
            })),
        });
        format!("{answer:#}\n")
    }
}

/// What a process calls itself.
fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = sanitize(name.trim_end());
    if name.is_empty() { name } else { format!(" ({name})") }
}
