//! What can be said of a disk without using it. Control thread only.
//!
//! Takes no lock and changes nothing, so that a disk may be looked at while a machine runs on it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::limits;
use super::lock::{self, Lock};
use crate::host_file::{Kind, open_again};
use crate::zvol::Volume;
use crate::{
    BackingSpace, ByteOffset, ByteRange, CacheMode, DiskOptions, Extent, Extents, Geometry,
    OpenError,
};
use rustix::fs::OFlags;

/// A disk, looked at from outside.
#[derive(Debug)]
pub struct Survey {
    file: File,
    /// Whether it is a block device of the host.
    pub is_block_device: bool,
    /// Its size, its blocks, and what can be discarded.
    pub geometry: Geometry,
    /// The dataset, if it is a ZFS volume.
    pub volume: Option<String>,
    /// What the file takes of its file system, in bytes, with what was reserved and with what lies behind its end; or the volume of
    /// its pool. Another block device does not say.
    pub allocated: Option<u64>,
    /// The space of what stores it, where the host says.
    pub backing: Option<BackingSpace>,
    /// Whether somebody uses it.
    pub lock: Lock,
}

impl Survey {
    /// Looks at the disk in `path`, whose guest sees blocks of `block_size` bytes (by default as [`DiskOptions`] says).
    ///
    /// # Errors
    ///
    /// The host refuses the file or a question about it, or it cannot be a disk.
    pub fn of(path: &Path, block_size: Option<u32>) -> Result<Self, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: path.to_path_buf(), what, source };
        let (found, kind) = super::find(path)?;
        let is_block_device = kind == Kind::BlockDevice;
        // Whether a file takes holes is tried behind its end, which needs the right to write.
        let writable = match kind {
            Kind::Regular => open_again(&found, OFlags::RDWR | OFlags::CLOEXEC).ok(),
            Kind::BlockDevice => None,
        };
        let options = DiskOptions {
            read_only: kind == Kind::Regular && writable.is_none(),
            block_size,
            ..DiskOptions::new(CacheMode::WriteBack)
        };
        let file = match writable {
            Some(file) => file,
            None => open_again(&found, OFlags::RDONLY | OFlags::CLOEXEC)
                .map_err(host_error("open it"))?,
        };
        let limits = limits::probe(&file, path, kind, &options)?;
        let metadata = file.metadata().map_err(host_error("query it"))?;
        let volume = Volume::of(&file).map_err(host_error("ask for its dataset"))?;
        // Without the program of ZFS there is the less to tell.
        let space = volume.as_ref().and_then(|volume| volume.space().ok());
        let backing = match &volume {
            Some(_) => space.map(|space| space.store),
            None => BackingSpace::of(&file).map_err(host_error("ask for free space"))?,
        };
        Ok(Self {
            is_block_device,
            geometry: limits.geometry,
            // st_blocks counts 512 bytes whatever the file system's block (stat(2)).
            allocated: match kind {
                Kind::Regular => Some(metadata.blocks() * 512),
                Kind::BlockDevice => space.map(|space| space.referenced),
            },
            backing,
            volume: volume.map(Volume::into_name),
            lock: lock::look(&file).map_err(host_error("look at its lock"))?,
            file,
        })
    }

    /// What is data and what is a hole, from the disk's start to its end.
    #[must_use]
    pub fn extents(&self) -> Extents<'_> {
        Extents::new(&self.file, 0, self.geometry.capacity)
    }

    /// Reads all data and counts the bytes of whole granules (of the discard granularity, or the logical block where nothing
    /// can be discarded) that hold nothing but zeroes: what a guest that frees what it does not use could have given back. `progress` is told of
    /// each piece: how many bytes were read.
    ///
    /// # Errors
    ///
    /// The host refuses to read.
    pub fn count_zeroes(&self, mut progress: impl FnMut(u64)) -> io::Result<u64> {
        let granule = self.geometry.discard.map_or(self.geometry.logical_block, |d| d.granularity);
        let granule = u64::from(granule);
        let mut zeroes = 0;
        for extent in self.extents() {
            let Extent { range: ByteRange { start: ByteOffset(start), len }, data } = extent?;
            if data {
                zeroes += self.zeroes_within(start, start + len, granule, &mut progress)?;
            }
        }
        Ok(zeroes)
    }

    fn zeroes_within(
        &self,
        start: u64,
        end: u64,
        granule: u64,
        progress: &mut impl FnMut(u64),
    ) -> io::Result<u64> {
        const PIECE: u64 = 1 << 20;
        let piece = PIECE.next_multiple_of(granule);
        let mut buffer = Vec::new();
        let (mut at, mut zeroes) = (start.next_multiple_of(granule), 0);
        while at < end {
            let len = piece.min(end - at);
            buffer.clear();
            let from = &mut ReadAt { file: &self.file, at };
            from.take(len).read_to_end(&mut buffer)?;
            let whole = buffer.chunks_exact(usize::try_from(granule).unwrap_or(usize::MAX));
            let zero =
                whole.filter(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0).count();
            zeroes += zero as u64 * granule;
            progress(len);
            at += len;
        }
        Ok(zeroes)
    }
}

/// Reads on from an offset.
struct ReadAt<'f> {
    file: &'f File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::pread(self.file, into, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::{Backend, RawFile};

    const MIB: u64 = 1 << 20;

    fn image() -> NamedTempFile {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(8 * MIB).unwrap();
        image
    }

    #[test]
    fn the_holder_of_a_disk_is_named() {
        let image = image();
        let lock = || Survey::of(image.path(), None).unwrap().lock;
        assert_eq!(lock(), Lock::Free);
        let pid = Some(std::process::id());
        let options = DiskOptions::new(CacheMode::WriteBack);
        let writer = RawFile::open(image.path(), &options).unwrap();
        assert_eq!(lock(), Lock::Exclusive { pid });
        let refused = RawFile::open(image.path(), &options).unwrap_err();
        assert!(
            matches!(refused, OpenError::InUse { pid: found, .. } if found == pid),
            "{refused}"
        );
        drop(writer);
        let _reader = RawFile::open(image.path(), &options.read_only()).unwrap();
        assert_eq!(lock(), Lock::Shared { pid });
    }

    #[test]
    fn zeroes_that_take_space_are_counted_in_whole_granules() {
        let image = image();
        let file = image.as_file();
        file.write_all_at(&vec![0; 1 << 20], MIB).unwrap();
        file.write_all_at(&[1], MIB + 4097).unwrap();
        file.write_all_at(&[1], 6 * MIB + 5).unwrap();
        file.sync_all().unwrap();
        let survey = Survey::of(image.path(), None).unwrap();
        let granule = u64::from(survey.geometry.discard.unwrap().granularity);
        let mut read = 0;
        let zeroes = survey.count_zeroes(|bytes| read += bytes).unwrap();
        assert_eq!(zeroes, MIB - granule);
        assert_eq!(read, MIB + granule);
        let allocated = survey.allocated.unwrap();
        assert!((read..2 * MIB).contains(&allocated), "{allocated}");
    }

    #[test]
    fn a_disk_tells_what_is_allocated_and_how_much_is_left() {
        let image = image();
        image.as_file().write_all_at(&[1], 4 * MIB).unwrap();
        let disk = RawFile::open(image.path(), &DiskOptions::new(CacheMode::WriteBack)).unwrap();
        let extents = disk.allocation(ByteOffset(4 * MIB), 1).unwrap();
        assert!(extents[0].data && extents[0].range.start == ByteOffset(4 * MIB), "{extents:?}");
        assert_eq!(disk.allocation(ByteOffset(0), 9).unwrap().len(), 3);
        let space = disk.backing_space().unwrap().unwrap();
        assert!(space.available > 0 && space.total() > space.used, "{space:?}");
    }
}
