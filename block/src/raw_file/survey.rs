//! A disk as seen from outside, for `bulkhead disk`. Control thread only.
//!
//! Takes no lock and changes no data, so that a disk can be inspected while a machine uses it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::host_file::{FileKind, find, probe, query_lock, reopen};
use crate::space::Volume;
use crate::{
    BackingSpace, ByteOffset, ByteRange, CacheMode, DiskOptions, Extent, Extents, Geometry,
    ImageLock, OpenError, SpaceProbe,
};

/// Properties of a disk, found without using it.
#[derive(Debug)]
pub struct Survey {
    file: File,
    /// It is a block device of the host.
    pub is_block_device: bool,
    /// Geometry.
    pub geometry: Geometry,
    /// Name of the dataset if it is a ZFS volume.
    pub volume: Option<String>,
    /// Bytes allocated to the file in its file system, including preallocated ones and those
    /// beyond its end, or to the volume in its pool. `None` for other block devices.
    pub allocated: Option<u64>,
    /// Space of the backing store, if the host reports it.
    pub backing: Option<BackingSpace>,
    /// State of the lock on the image.
    pub lock: ImageLock,
}

impl Survey {
    /// Inspects the disk at `path`, whose guest sees blocks of `block_size` bytes (by default as in
    /// [`DiskOptions::block_size`]).
    ///
    /// # Errors
    ///
    /// The host's error, or the file cannot serve as a disk.
    pub fn of(path: &Path, block_size: Option<u32>) -> Result<Self, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: path.to_path_buf(), what, source };
        let (found, kind) = find(path)?;
        let is_block_device = kind == FileKind::BlockDevice;
        let file = reopen(&found, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK)
            .map_err(host_error("open it"))?;
        let options = DiskOptions { block_size, ..DiskOptions::new(CacheMode::WriteBack) };
        let limits = probe(&file, path, kind, &options)?;
        let metadata = file.metadata().map_err(host_error("query it"))?;
        let volume = Volume::of(&file).map_err(host_error("query its dataset"))?;
        // If `zfs` is not installed, the space is unknown.
        let space = volume.as_ref().and_then(|volume| volume.space().ok());
        let backing = match &volume {
            Some(_) => space.map(|space| space.store),
            None => SpaceProbe::of(&file)
                .and_then(|probe| probe.measure(&file))
                .map_err(host_error("query free space"))?,
        };
        Ok(Self {
            is_block_device,
            geometry: limits.geometry,
            // st_blocks counts 512 bytes whatever the file system's block (stat(2)).
            allocated: match kind {
                FileKind::Regular => Some(metadata.blocks() * 512),
                FileKind::BlockDevice => space.map(|space| space.referenced),
            },
            backing,
            volume: volume.map(Volume::into_name),
            lock: query_lock(&file).map_err(host_error("query its lock"))?,
            file,
        })
    }

    /// Data and holes, from the start of the disk to its end.
    #[must_use]
    pub fn extents(&self) -> Extents<'_> {
        Extents::new(&self.file, 0, self.geometry.capacity)
    }

    /// Reads all data and returns how many bytes of whole granules hold nothing but zeroes: what
    /// the guest could have discarded. The granule is the discard granularity, or the logical
    /// block if nothing can be discarded. `progress` is called with the bytes of each read.
    ///
    /// # Errors
    ///
    /// The host's error.
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

/// Reads sequentially from an offset.
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
    fn the_lock_names_its_holder() {
        let image = image();
        let lock = || Survey::of(image.path(), None).unwrap().lock;
        assert_eq!(lock(), ImageLock::Free);
        let pid = Some(std::process::id());
        let options = DiskOptions::new(CacheMode::WriteBack);
        let writer = RawFile::open(image.path(), &options).unwrap();
        assert_eq!(lock(), ImageLock::Exclusive { pid });
        let refused = RawFile::open(image.path(), &options).unwrap_err();
        assert!(
            matches!(refused, OpenError::InUse { pid: found, .. } if found == pid),
            "{refused}"
        );
        drop(writer);
        let _reader = RawFile::open(image.path(), &options.read_only()).unwrap();
        assert_eq!(lock(), ImageLock::Shared { pid });
    }

    #[test]
    fn allocated_zeroes_are_counted_in_whole_granules() {
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
    fn a_disk_reports_its_allocation_and_backing_space() {
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
