//! ZFS volumes: which block device is one, and what space it and its pool have. Control plane only.
//!
//! A volume is the one kind of block device that is known to read zero where it was discarded: what it has freed is a hole
//! of an object, and that has no other content (ADR 12). Space is the pool's, of which the kernel tells nothing without ZFS's
//! own library: so the program `zfs` is asked, which takes milliseconds, and is never waited for on the data path.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::ioctl::{Getter, opcode};

use crate::BackingSpace;

/// How long `zfs` may take. A pool that hangs hangs it, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where `zfs` is.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
/// `ZFS_MAX_DATASET_NAME_LEN`.
const MOST_NAME: usize = 256;
/// `BLKZNAME` of ZFS's `sys/fs/zfs.h`: `_IOR(0x12, 125, char[256])`.
const BLKZNAME: rustix::ioctl::Opcode = opcode::read::<[u8; MOST_NAME]>(0x12, 125);

/// A volume by the name of its dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume(String);

/// What `zfs` tells of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSpace {
    /// What the volume takes of its pool, in bytes: its `referenced`.
    pub(crate) referenced: u64,
    /// The space of the pool as far as the volume may have it: what it has reserved for itself is not used.
    pub(crate) store: BackingSpace,
}

/// A volume and its store's space when last looked at, which is told without waiting.
#[derive(Debug)]
pub(crate) struct WatchedVolume {
    volume: Volume,
    last: Mutex<Option<BackingSpace>>,
}

impl WatchedVolume {
    /// A volume that was not looked at yet.
    pub(crate) fn new(volume: Volume) -> Self {
        Self { volume, last: Mutex::default() }
    }

    /// Looks at the space. Blocks as [`Volume::space`] does.
    ///
    /// # Errors
    ///
    /// As [`Volume::space`].
    pub(crate) fn look(&self) -> io::Result<BackingSpace> {
        let found = self.volume.space().map(|space| space.store);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = found.as_ref().ok().copied();
        found
    }

    /// What was seen last; nothing if that failed.
    pub(crate) fn last(&self) -> Option<BackingSpace> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the kernel's driver of that major number is the one of volumes.
pub(crate) fn is_driver(major: u32) -> bool {
    std::fs::read_to_string("/proc/devices").is_ok_and(|devices| is_listed(&devices, major))
}

impl Volume {
    /// The volume that `file` is, or a part of; nothing if it is anything else.
    ///
    /// # Errors
    ///
    /// The host refuses to say.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device || !is_driver(rustix::fs::major(metadata.rdev())) {
            return Ok(None);
        }
        // SAFETY: that is what the number says of the ioctl.
        let get_name = unsafe { Getter::<BLKZNAME, [u8; MOST_NAME]>::new() };
        // SAFETY: the driver of volumes, of which this is one, writes so many bytes, of any value.
        let name = unsafe { rustix::ioctl::ioctl(file, get_name)? };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(Self(String::from_utf8_lossy(name).into_owned())))
    }

    /// The name of its dataset.
    pub(crate) fn into_name(self) -> String {
        self.0
    }

    /// Asks `zfs` for the space there is. Blocks for some milliseconds, and no longer than [`PATIENCE`].
    ///
    /// # Errors
    ///
    /// `zfs` is not there, does not answer, or says something else.
    pub(crate) fn space(&self) -> io::Result<VolumeSpace> {
        let Self(name) = self;
        let dataset = name.split('@').next().unwrap_or_default();
        let pool = name.split(['/', '@']).next().unwrap_or_default();
        let child = Command::new("zfs")
            .args(["get", "-Hp", "-o", "name,property,value"])
            .args(["used,available,referenced,usedbyrefreservation", pool, dataset])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run `zfs` of zfsutils: {error}"))
        })?;
        let said = answer(child)?;
        read(&said, pool, dataset).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("`zfs` tells no space of {name}"))
        })
    }
}

/// Whether a `/proc/devices` lists the number as a block device of ZFS.
fn is_listed(devices: &str, major: u32) -> bool {
    let block = devices.split_once("Block devices:").map_or("", |(_, block)| block);
    let mut drivers = block.lines().filter_map(|line| line.trim().split_once(' '));
    drivers.any(|(number, driver)| driver == "zvol" && number.parse() == Ok(major))
}

/// What a program says that ends soon and says less than a pipe holds.
fn answer(mut child: Child) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "`zfs` does not answer"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said)?;
    }
    Ok(said)
}

/// Reads lines of a dataset, a property and a number.
fn read(said: &str, pool: &str, dataset: &str) -> Option<VolumeSpace> {
    let number = |of: &str, property: &str| {
        let mut lines = said.lines().map(|line| line.splitn(3, '\t'));
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
    fn a_volume_is_told_by_its_driver() {
        assert!(is_listed(DEVICES, 230));
        for other in [1, 7, 231, 259] {
            assert!(!is_listed(DEVICES, other), "{other}");
        }
        assert!(!is_listed("", 230));
    }

    #[test]
    fn other_files_are_no_volumes() {
        assert_eq!(Volume::of(&tempfile::tempfile().unwrap()).unwrap(), None);
        assert_eq!(Volume::of(&File::open("/dev/null").unwrap()).unwrap(), None);
    }

    #[test]
    fn space_reserved_for_the_volume_is_not_used() {
        let said = "tank\tused\t1000\ntank\tavailable\t300\ntank\treferenced\t24\ntank\tusedbyrefreservation\t0\n\
                    tank/a b\tused\t700\ntank/a b\tavailable\t800\ntank/a b\treferenced\t200\ntank/a b\tusedbyrefreservation\t500\n";
        let store = BackingSpace { used: 500, available: 800 };
        assert_eq!(read(said, "tank", "tank/a b"), Some(VolumeSpace { referenced: 200, store }));
        assert_eq!(read(said, "tank", "tank/b"), None);
        assert_eq!(read(&said.replace("800", "-"), "tank", "tank/a b"), None);
    }

    #[test]
    fn a_program_that_fails_says_nothing() {
        let child = Command::new("false").stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(answer(child).unwrap(), "");
    }
}
