//! A layer and everything below it, locked and read by one thread. May block.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::file::{base_path, host_error, read_header};
use super::super::header::Header;
use super::super::levels::LevelMap;
use super::super::map::LayerMap;
use super::super::map_file::read_map;
use super::super::open::{Base, LEVELS_MAX, open_base, sync, too_long};
use super::super::unit::BLOCK;
use crate::{CacheMode, DiskFormat, DiskOptions, Extents, FileIdentity, OpenError, RawFile};

/// One file: the place of the disk in it, and the blocks that it answers for.
pub(super) struct LockedLevel {
    pub(super) path: PathBuf,
    pub(super) file: Arc<RawFile>,
    /// Position of the disk's first byte in the file.
    pub(super) data_at: u64,
    /// Size of its disk in bytes: it answers beyond it with zeroes.
    pub(super) size: u64,
    /// The blocks of a layer; `None` for a raw base, which answers for all.
    pub(super) map: Option<LayerMap>,
}

/// The origin of a piece of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Data of the level with this index.
    Data(usize),
    /// No level, or a hole of one.
    Zeroes,
}

/// From the highest level to the raw base.
pub(super) struct LockedChain(pub(super) Vec<LockedLevel>);

/// The options of a file that is only read.
pub(super) fn read_options() -> DiskOptions {
    // A base is raw if the header says so: a guest may have written any bytes to it.
    DiskOptions { format: DiskFormat::Raw, ..write_options().read_only() }
}

/// The options of a file that is changed.
pub(in super::super) fn write_options() -> DiskOptions {
    DiskOptions::new(CacheMode::WriteBack)
}

impl LockedChain {
    /// The layer at `path`, which is only read, and everything below it.
    ///
    /// # Errors
    ///
    /// A file is in use by a writer, missing, or no layer that can be used; or a base has changed.
    pub(super) fn open(path: &Path) -> Result<(Header, Self), OpenError> {
        let file = Arc::new(RawFile::open_container(path, &read_options())?);
        sync(file.file(), path)?;
        let header = read_header(file.file(), path)?;
        super::super::merge::require_whole(&header, path)?;
        let map = Some(read_map(file.file(), path, &header)?);
        let (data_at, size) = (header.data_at(), header.size);
        let mut levels = vec![LockedLevel { path: path.to_owned(), file, data_at, size, map }];
        levels.extend(Self::below(path, &header)?.0);
        if levels.len() > LEVELS_MAX {
            return Err(too_long(path));
        }
        Ok((header, Self(levels)))
    }

    /// Everything below the layer at `path`.
    ///
    /// # Errors
    ///
    /// As [`LockedChain::open`].
    pub(super) fn below(path: &Path, header: &Header) -> Result<Self, OpenError> {
        let mut levels = Vec::new();
        let mut next = Some((path.to_owned(), header.clone()));
        while let Some((layer, header)) = next {
            if levels.len() + 1 == LEVELS_MAX {
                return Err(too_long(path));
            }
            let Base { file, level, next: below } = open_base(&layer, &header, &read_options())?;
            let map = match level.map {
                LevelMap::Layer(map) => Some(map),
                LevelMap::Raw => None,
            };
            let (path, data_at, size) = (base_path(&layer, &header), level.data_at, level.size);
            levels.push(LockedLevel { path, file: Arc::new(file), data_at, size, map });
            next = below;
        }
        Ok(Self(levels))
    }

    /// A raw image or a device.
    ///
    /// # Errors
    ///
    /// As [`LockedChain::open`].
    pub(super) fn raw(path: &Path) -> Result<Self, OpenError> {
        let file = Arc::new(RawFile::open(path, &read_options())?);
        sync(file.file(), path)?;
        let size = rustix::fs::seek(file.file(), rustix::fs::SeekFrom::End(0))
            .map_err(|errno| host_error(path, "query its size")(errno.into()))?;
        let path = path.to_owned();
        Ok(Self(vec![LockedLevel { path, file, data_at: 0, size, map: None }]))
    }

    /// The level that answers for the byte `at`, and up to where, at most `end`.
    fn answerer(&self, at: u64, mut end: u64) -> (Option<(usize, &LockedLevel)>, u64) {
        for (index, level) in self.0.iter().enumerate() {
            // Layers above may have grown.
            if at >= level.size {
                return (None, end);
            }
            end = end.min(level.size);
            let Some(map) = &level.map else { return (Some((index, level)), end) };
            let (is_set, run) = map.run(at / BLOCK, end.div_ceil(BLOCK));
            end = end.min(run * BLOCK);
            if is_set {
                return (Some((index, level)), end);
            }
        }
        (None, end)
    }

    /// The origin of the byte `at`, and up to where it is the same, at most `end`. `at` is below
    /// `end`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn piece(&self, at: u64, end: u64) -> Result<(Origin, u64), OpenError> {
        let (answerer, end) = self.answerer(at, end);
        let Some((index, level)) = answerer else { return Ok((Origin::Zeroes, end)) };
        let (start, stop) = (level.data_at + at, level.data_at + end);
        let Some(extent) = Extents::new(level.file.file(), start, stop).next() else {
            return Ok((Origin::Zeroes, end));
        };
        let extent = extent.map_err(host_error(&level.path, "find its data"))?;
        let origin = if extent.data { Origin::Data(index) } else { Origin::Zeroes };
        Ok((origin, at + extent.range.len))
    }

    /// The file with the data of an origin, and where it has the disk.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn place(&self, origin: Origin) -> Result<Option<(FileIdentity, u64)>, OpenError> {
        let Origin::Data(index) = origin else { return Ok(None) };
        let Some(level) = self.0.get(index) else { return Ok(None) };
        let metadata = level.file.file().metadata();
        let metadata = metadata.map_err(host_error(&level.path, "query it"))?;
        Ok(Some((FileIdentity::of(&metadata), level.data_at)))
    }

    /// Reads the disk from `at` on. Beyond its end it reads zero.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn read(&self, mut at: u64, buffer: &mut [u8]) -> Result<(), OpenError> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let (origin, end) = self.piece(at, at + rest.len() as u64)?;
            let bytes = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, tail) = rest.split_at_mut(bytes);
            match origin {
                Origin::Zeroes => part.fill(0),
                Origin::Data(index) => self.read_level(index, at, part)?,
            }
            (at, rest) = (end, tail);
        }
        Ok(())
    }

    fn read_level(&self, index: usize, at: u64, part: &mut [u8]) -> Result<(), OpenError> {
        let level = self.0.get(index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let level = level.map_err(host_error(Path::new(""), "find a level"))?;
        let read = level.file.file().read_exact_at(part, level.data_at + at);
        read.map_err(host_error(&level.path, "read it"))
    }
}
