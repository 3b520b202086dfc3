//! How much space is left where a disk is stored. Control thread only.
//!
//! What fills is not the disk but the file system below it. Of a loop device that is the one of its file, of a ZFS volume its
//! pool. Other block devices do not say.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::zvol::Volume;

/// The space of what stores a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingSpace {
    /// Used by everybody.
    pub used: u64,
    /// Still to be had by us.
    pub available: u64,
}

impl BackingSpace {
    /// The space of what stores the disk in `file`; nothing where the host does not say. Of a ZFS volume it is asked by a
    /// program, which may take long.
    ///
    /// # Errors
    ///
    /// The host refuses to answer.
    pub fn ask(file: &File) -> io::Result<Option<Self>> {
        match Volume::of(file)? {
            Some(volume) => Ok(Some(volume.space()?.store)),
            None => Self::of(file),
        }
    }

    /// The same where the kernel can be asked: not of a ZFS volume.
    ///
    /// # Errors
    ///
    /// The host refuses to answer.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Self::of_file_system(file).map(Some);
        }
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        match loop_file(metadata.rdev()) {
            Some(path) => Self::of_file_system(File::open(path)?).map(Some),
            None => Ok(None),
        }
    }

    fn of_file_system(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstatvfs(file)?;
        Ok(Self {
            used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// All that the disk's owner could use.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.used.saturating_add(self.available)
    }

    /// The least that is so many percent of it, in bytes.
    #[must_use]
    pub fn part(&self, percent: u8) -> u64 {
        let part = (u128::from(self.total()) * u128::from(percent)).div_ceil(100);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// The file that a loop device shows.
fn loop_file(device: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').into())
}
