//! Measures the space of a disk's backing store. Control thread only.
//!
//! The store is not the disk but what runs full below it: the file system of an image, that of a
//! loop device's file, the pool of a ZFS volume. Other block devices do not report one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::zvol::Volume;
use crate::BackingSpace;

/// How to measure the space of one backing store.
#[derive(Debug)]
pub struct SpaceProbe(Source);

#[derive(Debug)]
enum Source {
    /// The file system of the image itself.
    FileSystem,
    /// The file system of this path, a loop device's file.
    LoopFile(PathBuf),
    /// A ZFS volume, measured by a program, and what it reported last.
    Volume {
        volume: Volume,
        last: Mutex<Option<BackingSpace>>,
    },
    Unknown,
}

impl SpaceProbe {
    /// Finds the backing store of the disk in `file`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(Self(Source::FileSystem));
        }
        if !metadata.file_type().is_block_device() {
            return Ok(Self(Source::Unknown));
        }
        if let Some(volume) = Volume::of(file)? {
            return Ok(Self(Source::Volume { volume, last: Mutex::default() }));
        }
        Ok(Self(loop_file(metadata.rdev()).map_or(Source::Unknown, Source::LoopFile)))
    }

    /// Measures the space below `file`; `None` if the host does not report it. Blocks: on the
    /// metadata of a file system, or on a program for as long as [`Volume::space`].
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn measure(&self, file: &File) -> io::Result<Option<BackingSpace>> {
        match &self.0 {
            Source::FileSystem => file_system_space(file).map(Some),
            Source::LoopFile(path) => file_system_space(File::open(path)?).map(Some),
            Source::Volume { volume, last } => {
                let measured = volume.space().map(|space| space.store);
                *last.lock().unwrap_or_else(PoisonError::into_inner) =
                    measured.as_ref().ok().copied();
                measured.map(Some)
            }
            Source::Unknown => Ok(None),
        }
    }

    /// The space without running a program: of a ZFS volume, the result of the last
    /// [`SpaceProbe::measure`], `None` if that failed.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn measure_quickly(&self, file: &File) -> io::Result<Option<BackingSpace>> {
        match &self.0 {
            Source::Volume { last, .. } => Ok(*last.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => self.measure(file),
        }
    }

    /// Whether a program is run to measure the space.
    pub(crate) fn is_volume(&self) -> bool {
        matches!(self.0, Source::Volume { .. })
    }
}

fn file_system_space(file: impl AsFd) -> io::Result<BackingSpace> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok(BackingSpace {
        used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// The backing file of a loop device.
fn loop_file(device: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').into())
}
