//! The place that a proof writes to: a file that it makes, or a range of a block device, whose data
//! it writes back unchanged.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::ReadWriteFlags;
use thiserror::Error;

use crate::host_file::reopen;
use crate::page::PageBuffer;
use crate::{Backend, CacheMode, DiskOptions, Durability, OpenError, RawFile};

/// Windows with a write and a flush, and as many without, for each cache mode.
pub const ROUNDS: u32 = 8;

/// Length of one write: a multiple of every block size that Linux supports.
const WRITE_BYTES: usize = 64 << 10;

/// A scratch cannot be made.
#[derive(Debug, Error)]
pub enum ScratchError {
    /// The host's error.
    #[error("cannot {what} {}: {source}", path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The disk is in use, or cannot be opened.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// The range does not suit.
    #[error("{0}")]
    Range(String),
    /// The file was made on another file system than the disk.
    #[error(
        "{} is mounted by itself, so that a file beside it is on another file system",
        path.display()
    )]
    OtherFileSystem {
        /// The disk.
        path: PathBuf,
    },
}

/// A scratch file, which is removed when it is dropped, or a locked range of a device.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    file: File,
    /// First byte.
    start: u64,
    /// Data of the range, `ROUNDS` writes.
    data: PageBuffer,
    /// Holds the lock on a device.
    device: Option<RawFile>,
}

impl Scratch {
    /// Length of a range in bytes.
    pub const BYTES: u64 = WRITE_BYTES as u64 * ROUNDS as u64;

    /// Makes a file in `folder`, on the file system that holds the disk `beside`.
    ///
    /// # Errors
    ///
    /// The file exists, or cannot be written.
    pub fn file_in(folder: &Path, beside: Option<&Path>) -> Result<Self, ScratchError> {
        let (path, file) = create(folder)?;
        let host_error = |what| {
            let path = path.clone();
            move |source| ScratchError::Host { path, what, source }
        };
        // From here on, an error removes the file.
        let mut data = PageBuffer::zeroed(WRITE_BYTES * ROUNDS as usize);
        fill(data.as_mut_slice());
        let scratch = Self { path: path.clone(), file, start: 0, data, device: None };
        if let Some(beside) = beside {
            let disk = fs::metadata(beside).map_err(host_error("find the disk beside"))?;
            let made = scratch.file.metadata().map_err(host_error("query"))?;
            if disk.dev() != made.dev() {
                return Err(ScratchError::OtherFileSystem { path: beside.to_path_buf() });
            }
        }
        // Later writes change blocks that exist, as most writes of a guest do.
        let written = scratch.file.write_all_at(scratch.data.as_slice(), 0);
        written.and_then(|()| scratch.file.sync_all()).map_err(host_error("fill"))?;
        Ok(scratch)
    }

    /// Locks the device at `path` and reads [`Scratch::BYTES`] of it from byte `start`.
    ///
    /// # Errors
    ///
    /// The device is in use, or the range is not on it or not aligned.
    pub fn range_of(path: &Path, start: u64) -> Result<Self, ScratchError> {
        let step = WRITE_BYTES as u64;
        if !start.is_multiple_of(step) {
            let what = format!("a scratch range starts at a multiple of {step}, not at {start}");
            return Err(ScratchError::Range(what));
        }
        // Direct, so that no page of the device is left in the cache.
        let device = RawFile::open(path, &DiskOptions::new(CacheMode::None))?;
        let capacity = device.geometry().capacity;
        if start.checked_add(Self::BYTES).is_none_or(|end| end > capacity) {
            let shown = path.display();
            let what = format!("{shown} has {capacity} bytes: no {} from {start}", Self::BYTES);
            return Err(ScratchError::Range(what));
        }
        let file = rustix::fs::open(path, flags(CacheMode::None), Mode::empty());
        let file = file.map_err(|errno| ScratchError::Host {
            path: path.to_path_buf(),
            what: "open",
            source: errno.into(),
        })?;
        let mut scratch = Self {
            path: path.to_path_buf(),
            file: file.into(),
            start,
            data: PageBuffer::zeroed(WRITE_BYTES * ROUNDS as usize),
            device: Some(device),
        };
        let read = scratch.file.read_exact_at(scratch.data.as_mut_slice(), start);
        read.map_err(|source| ScratchError::Host {
            path: path.to_path_buf(),
            what: "read",
            source,
        })?;
        Ok(scratch)
    }

    /// The path of the file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Opens it as a disk with this cache mode does.
    pub(super) fn open_for(&mut self, mode: CacheMode) -> io::Result<()> {
        // By its descriptor: others may have replaced the name in a folder of theirs.
        self.file = reopen(&self.file, flags(mode))?;
        Ok(())
    }

    /// Writes, and flushes unless the write is durable by itself.
    pub(super) fn write_and_flush(&mut self, mode: CacheMode, round: u32) -> io::Result<()> {
        let at = round as usize * WRITE_BYTES;
        let is_file = self.device.is_none();
        let data = self.data.as_mut_slice().get_mut(at..at + WRITE_BYTES);
        let data = data.ok_or(io::ErrorKind::InvalidInput)?;
        if is_file {
            // ZFS may drop a write of what is stored already.
            data.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        }
        let flags = match is_durable(mode) {
            true => ReadWriteFlags::DSYNC,
            false => ReadWriteFlags::empty(),
        };
        let offset = self.start + at as u64;
        let written = rustix::io::pwritev2(&self.file, &[IoSlice::new(data)], offset, flags)?;
        if written != WRITE_BYTES {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if !is_durable(mode) {
            rustix::fs::fdatasync(&self.file)?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.device.is_none()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the scratch file");
        }
    }
}

/// Makes a file with a name that is free. It keeps the name while it is used: btrfs does not sync a
/// file without one.
fn create(folder: &Path) -> Result<(PathBuf, File), ScratchError> {
    let mut attempt = 0;
    loop {
        let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
        let path = folder.join(format!(".bulkhead-prove-{}{suffix}", std::process::id()));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            // That of a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 16 => {}
            Err(source) => {
                return Err(ScratchError::Host { path, what: "make the scratch file", source });
            }
        }
        attempt += 1;
    }
}

fn flags(mode: CacheMode) -> OFlags {
    let direct = if mode.is_direct() { OFlags::DIRECT } else { OFlags::empty() };
    OFlags::RDWR | OFlags::CLOEXEC | direct
}

/// Whether each write of the mode is durable by itself.
pub(super) fn is_durable(mode: CacheMode) -> bool {
    mode.write_durability() == Durability::Durable
}

/// Fills the buffer with bytes that do not compress.
fn fill(bytes: &mut [u8]) {
    // The generator xorshift64 of G. Marsaglia.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a folder of another user, the name may lead to any file at any time.
    #[test]
    fn a_replaced_name_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let mut scratch = Scratch::file_in(folder.path(), None).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        fs::rename(&link, scratch.path()).unwrap();
        for mode in [CacheMode::WriteBack, CacheMode::WriteThrough] {
            scratch.open_for(mode).unwrap();
            scratch.write_and_flush(mode, 0).unwrap();
        }
        drop(scratch);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn a_name_that_is_left_does_not_keep_another_file_from_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!(".bulkhead-prove-{}", std::process::id());
        fs::write(folder.path().join(&name), "left").unwrap();
        let scratch = Scratch::file_in(folder.path(), None).unwrap();
        assert_eq!(scratch.path(), folder.path().join(format!("{name}-1")));
        drop(scratch);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn each_round_changes_its_part_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::file_in(folder.path(), None).unwrap();
        let before = fs::read(scratch.path()).unwrap();
        scratch.open_for(CacheMode::WriteBack).unwrap();
        scratch.write_and_flush(CacheMode::WriteBack, ROUNDS - 1).unwrap();
        let after = fs::read(scratch.path()).unwrap();
        assert_eq!(before.len() as u64, Scratch::BYTES);
        let changed: Vec<_> =
            (0..before.len()).filter(|at| before.get(*at) != after.get(*at)).collect();
        assert_eq!(changed, (before.len() - WRITE_BYTES..before.len()).collect::<Vec<_>>());
        assert!(scratch.write_and_flush(CacheMode::WriteBack, ROUNDS).is_err());
    }
}
