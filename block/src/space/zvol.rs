//! ZFS volumes: identifies one and asks for the space of its pool. Control plane only.
//!
//! A volume is the only block device known to read zero after a discard: what it has deallocated is
//! a hole of an object, which has no other content (ADR 12). The pool's space is not available from
//! the kernel without ZFS's own library, so the program `zfs` is run; it takes milliseconds.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::zfs_program::zfs;
use crate::BackingSpace;
use crate::sys::zvol_name;

/// A volume by the name of its dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume(String);

/// Space of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSpace {
    /// Bytes that the volume occupies in its pool: its `referenced` property.
    pub(crate) referenced: u64,
    /// The pool's space as far as the volume may use it. Its own reservation does not count as
    /// used.
    pub(crate) store: BackingSpace,
}

/// Whether the major number is that of the ZFS volume driver.
pub(crate) fn is_zvol_driver(major: u32) -> bool {
    std::fs::read_to_string("/proc/devices").is_ok_and(|devices| is_listed(&devices, major))
}

impl Volume {
    /// The volume that `file` is, or a partition of; `None` if it is anything else.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device || !is_zvol_driver(rustix::fs::major(metadata.rdev())) {
            return Ok(None);
        }
        Ok(Some(Self(zvol_name(file)?)))
    }

    /// The name of its dataset.
    pub(crate) fn into_name(self) -> String {
        self.0
    }

    /// Runs `zfs` to measure the volume's space. Blocks for some milliseconds, at most ten seconds.
    ///
    /// # Errors
    ///
    /// `zfs` cannot be run, does not end, or prints something else.
    pub(crate) fn space(&self) -> io::Result<VolumeSpace> {
        let Self(name) = self;
        let dataset = name.split('@').next().unwrap_or_default();
        let pool = name.split(['/', '@']).next().unwrap_or_default();
        let properties = "used,available,referenced,usedbyrefreservation";
        let output = zfs(&["get", "-Hp", "-o", "name,property,value", properties, pool, dataset])?;
        parse(&output, pool, dataset).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("`zfs` does not report the space of {name}"),
            )
        })
    }
}

/// Whether the text of `/proc/devices` lists the number as ZFS's block devices.
fn is_listed(devices: &str, major: u32) -> bool {
    let block = devices.split_once("Block devices:").map_or("", |(_, block)| block);
    let mut drivers = block.lines().filter_map(|line| line.trim().split_once(' '));
    drivers.any(|(number, driver)| driver == "zvol" && number.parse() == Ok(major))
}

/// Parses lines of a dataset, a property and a number, separated by tabs.
fn parse(output: &str, pool: &str, dataset: &str) -> Option<VolumeSpace> {
    let number = |of: &str, property: &str| {
        let mut lines = output.lines().map(|line| line.splitn(3, '\t'));
        let mut found = lines.find_map(|mut line| {
            (line.next() == Some(of) && line.next() == Some(property)).then(|| line.next())?
        });
        found.take()?.parse::<u64>().ok()
    };
    let reserved = number(dataset, "usedbyrefreservation")?;
    Some(VolumeSpace {
        referenced: number(dataset, "referenced")?,
        store: BackingSpace {
            used: number(pool, "used")?.saturating_sub(reserved),
            available: number(dataset, "available")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str =
        "Character devices:\n  1 mem\n231 zvol\n\nBlock devices:\n  7 loop\n230 zvol\n259 blkext\n";

    #[test]
    fn a_volume_is_identified_by_its_driver() {
        assert!(is_listed(DEVICES, 230));
        for other in [1, 7, 231, 259] {
            assert!(!is_listed(DEVICES, other), "{other}");
        }
        assert!(!is_listed("", 230));
    }

    #[test]
    fn other_files_are_not_volumes() {
        assert_eq!(Volume::of(&tempfile::tempfile().unwrap()).unwrap(), None);
        assert_eq!(Volume::of(&File::open("/dev/null").unwrap()).unwrap(), None);
    }

    #[test]
    fn the_reservation_of_the_volume_is_not_used_space() {
        let output = "tank\tused\t1000\ntank\tavailable\t300\ntank\treferenced\t24\ntank\tusedbyrefreservation\t0\n\
                    tank/a b\tused\t700\ntank/a b\tavailable\t800\ntank/a b\treferenced\t200\ntank/a b\tusedbyrefreservation\t500\n";
        let store = BackingSpace { used: 500, available: 800 };
        assert_eq!(parse(output, "tank", "tank/a b"), Some(VolumeSpace { referenced: 200, store }));
        assert_eq!(parse(output, "tank", "tank/b"), None);
        assert_eq!(parse(&output.replace("800", "-"), "tank", "tank/a b"), None);
    }
}
