//! A disk as seen from outside, for `bulkhead disk`. Any thread may query, and each query may block
//! on the host.
//!
//! Takes no lock and changes no data, so that a disk can be inspected while a machine uses it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::format_check::{FormatVerdict, ProbedFormat, prefer_format};
use crate::host_file::{FileKind, find, probe, query_lock, reopen};
use crate::space::Volume;
use crate::{
    BackingSpace, ByteOffset, ByteRange, CacheMode, DiscardLimits, DiskOptions, DroppedLimit,
    Extent, Extents, Geometry, ImageLock, OpenError, SpaceProbe, StableCopies, StoreStack,
};

/// A disk, opened for reading.
#[derive(Debug)]
pub struct Survey {
    file: File,
    path: PathBuf,
    kind: FileKind,
    options: DiskOptions,
    /// Geometry, without discard limits.
    pub geometry: Geometry,
    /// Limits that the store reports and a guest is not offered.
    pub dropped: Vec<DroppedLimit>,
    /// Bytes allocated to a file in its file system, including preallocated ones and those beyond
    /// its end.
    pub allocated: Option<u64>,
}

/// Space of a disk in its backing store.
#[derive(Clone, Debug, Default)]
pub struct StoreSpace {
    /// Name of the dataset if it is a ZFS volume.
    pub volume: Option<String>,
    /// Bytes allocated to the volume in its pool.
    pub allocated: Option<u64>,
    /// Space of the store, if the host reports it.
    pub backing: Option<BackingSpace>,
}

impl Survey {
    /// Opens the disk at `path`, whose guest sees blocks of `block_size` bytes (by default as in
    /// [`DiskOptions::block_size`]), and queries its size.
    ///
    /// # Errors
    ///
    /// The host's error, or the file cannot serve as a disk.
    pub fn open(path: &Path, block_size: Option<u32>) -> Result<Self, OpenError> {
        let host_error =
            |what| move |source| OpenError::Host { path: path.to_path_buf(), what, source };
        let (found, kind) = find(path)?;
        let file = reopen(&found, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK)
            .map_err(host_error("open it"))?;
        let defaults = DiskOptions::new(CacheMode::WriteBack);
        let options = DiskOptions { block_size, discard: false, ..defaults };
        let limits = probe(&file, path, kind, &options, &StableCopies::default())
            .map_err(|error| prefer_format(&file, path, error))?;
        // st_blocks counts 512 bytes whatever the file system's block (stat(2)).
        let allocated = match kind {
            FileKind::Regular => {
                Some(file.metadata().map_err(host_error("query it"))?.blocks() * 512)
            }
            FileKind::BlockDevice => None,
        };
        let path = path.to_path_buf();
        let (geometry, dropped) = (limits.geometry, limits.dropped);
        Ok(Self { file, path, kind, options, geometry, dropped, allocated })
    }

    /// It is a block device of the host.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.kind == FileKind::BlockDevice
    }

    fn host_error(&self, what: &'static str) -> impl Fn(io::Error) -> OpenError {
        move |source| OpenError::Host { path: self.path.clone(), what, source }
    }

    /// Discard limits of the disk, if the host discards.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn discard(&self) -> Result<Option<DiscardLimits>, OpenError> {
        let options = DiskOptions { discard: true, ..self.options.clone() };
        let copies = StableCopies::default();
        Ok(probe(&self.file, &self.path, self.kind, &options, &copies)?.geometry.discard)
    }

    /// The format of the image, as far as its bytes show it, and its consequence for a disk with
    /// default options.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn format(&self) -> Result<(ProbedFormat, FormatVerdict), OpenError> {
        let probed =
            ProbedFormat::of(&self.file).map_err(self.host_error("read its first blocks"))?;
        Ok((probed, probed.verdict(&self.path, &self.options)))
    }

    /// Space in the backing store. Runs the program `zfs` for a volume.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn space(&self) -> Result<StoreSpace, OpenError> {
        let volume = Volume::of(&self.file).map_err(self.host_error("query its dataset"))?;
        let Some(volume) = volume else {
            let measured = SpaceProbe::of(&self.file).and_then(|probe| probe.measure(&self.file));
            let backing = measured.map_err(self.host_error("query free space"))?;
            return Ok(StoreSpace { backing, ..StoreSpace::default() });
        };
        // If `zfs` is not installed, the space is unknown.
        let space = volume.space().ok();
        Ok(StoreSpace {
            allocated: space.map(|space| space.referenced),
            backing: space.map(|space| space.store),
            volume: Some(volume.into_name()),
        })
    }

    /// The storage below the disk. Runs the program `zfs` for a ZFS dataset.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn stack(&self) -> Result<StoreStack, OpenError> {
        StoreStack::of(&self.file).map_err(self.host_error("query the storage below it"))
    }

    /// State of the lock on the image.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn lock(&self) -> Result<ImageLock, OpenError> {
        query_lock(&self.file).map_err(self.host_error("query its lock"))
    }

    /// Data and holes, from the start of the disk to its end.
    #[must_use]
    pub fn extents(&self) -> Extents<'_> {
        Extents::new(&self.file, 0, self.geometry.capacity)
    }

    /// Reads all data and returns how many bytes of whole granules hold nothing but zeroes: what
    /// the guest could have discarded. The granule is the granularity of `discard`, or the logical
    /// block if nothing can be discarded. `progress` is called with the bytes of each read.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn count_zeroes(
        &self,
        discard: Option<DiscardLimits>,
        mut progress: impl FnMut(u64),
    ) -> io::Result<u64> {
        let granule = discard.map_or(self.geometry.logical_block, |limits| limits.granularity);
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
        let lock = || Survey::open(image.path(), None).unwrap().lock().unwrap();
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
        let survey = Survey::open(image.path(), None).unwrap();
        let discard = survey.discard().unwrap();
        let granule = u64::from(discard.unwrap().granularity);
        let mut read = 0;
        let zeroes = survey.count_zeroes(discard, |bytes| read += bytes).unwrap();
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
