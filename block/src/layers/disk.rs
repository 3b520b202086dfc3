//! A layered disk: the control plane.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::engine::LayerEngine;
use super::file::{host_error, write_header};
use super::header::Header;
use super::levels::{Answerer, Levels};
use super::open::{self, Chain};
use super::unit::{BLOCK, BLOCK_BYTES, BLOCK_SIZE};
use crate::allocation::{Extents, QUERY_TIME, collect_within};
use crate::page::PageBuffer;
use crate::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Crossing, DiskOptions, DiskStatus,
    EngineSetup, Extent, Geometry, IoEngine, OpenError, RawFile, ResizeError,
};

/// A writable top over a base that is only read, each in a file.
#[derive(Debug)]
pub struct LayeredDisk {
    path: PathBuf,
    /// Of the top, as the file has it.
    header: Mutex<Header>,
    levels: Arc<Levels>,
    top: RawFile,
    /// From below the top to the raw base.
    below: Vec<RawFile>,
}

impl LayeredDisk {
    /// Opens the layer at `path` and everything below it. The layer is locked as a disk is, what
    /// is below it against writers.
    ///
    /// # Errors
    ///
    /// The host's error; a file is in use; one is no layer, or is damaged; or a base is missing,
    /// is not that of `base`, or has changed.
    pub fn open(path: &Path, base: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let Chain { header, top, below, top_file, files } = open::chain(path, base, options)?;
        let levels = Arc::new(Levels::new(top, below, header.size));
        let header = Mutex::new(header);
        Ok(Self { path: path.into(), header, levels, top: top_file, below: files })
    }

    /// The file of a level.
    fn file(&self, level: usize) -> &RawFile {
        level.checked_sub(1).and_then(|index| self.below.get(index)).unwrap_or(&self.top)
    }

    /// Data or a hole from `at` on, as the level that answers for it has it.
    fn extent(&self, at: u64) -> io::Result<Extent> {
        let (source, end) = self.levels.piece(0, at, self.levels.capacity());
        let hole =
            Extent { range: ByteRange { start: ByteOffset(at), len: end - at }, data: false };
        let Answerer::Level(index) = source else { return Ok(hole) };
        let place = |at| self.levels.place(index, at);
        let mut extents = Extents::new(self.file(index).file(), place(at), place(end));
        extents.next().map_or(Ok(hole), |extent| {
            let Extent { range, data } = extent?;
            Ok(Extent { range: ByteRange { start: ByteOffset(at), ..range }, data })
        })
    }

    /// Writes the dirty pages of the map, after the data that their bits tell of.
    fn write_map(&self) -> io::Result<()> {
        let (levels, file) = (&self.levels, self.top.file());
        let mut page = PageBuffer::zeroed(BLOCK_BYTES);
        let mut dirty = Vec::new();
        while let Some(next) = levels.top.map.next_dirty(dirty.last().map_or(0, |last| last + 1)) {
            dirty.push(next);
        }
        for next in dirty {
            levels.top.map.clean(next);
            levels.top.map.store(next, page.as_mut_slice());
            let flushed = if levels.take_volatile() { self.top.sync() } else { Ok(()) };
            let at = Header::map_at() + next as u64 * BLOCK;
            flushed.and_then(|()| file.write_all_at(page.as_slice(), at)).inspect_err(|_| {
                levels.restore_volatile();
                levels.top.map.soil(next);
            })?;
        }
        self.top.sync()
    }

    fn grow(&self, size: u64) -> Result<u64, ResizeError> {
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        let from = header.size;
        if size < from {
            return Err(ResizeError::Shrink { from, to: size });
        }
        if !size.is_multiple_of(BLOCK) {
            return Err(ResizeError::Unaligned { size, unit: BLOCK_SIZE });
        }
        if self.top.read_only() {
            return Err(ResizeError::ReadOnly);
        }
        let host_error = |what| move |source| ResizeError::Host { what, source };
        if size > header.size_max() {
            let why = format!("its map is made for up to {} bytes", header.size_max());
            return Err(host_error("grow the layer")(io::Error::other(why)));
        }
        if size > from {
            // The file first: a header never tells of more than the file has.
            let end = header.data_at() + size;
            if end > self.top.geometry().capacity {
                self.top.resize(Some(end))?;
            }
            let grown = Header { size, ..header.clone() }.next();
            write_header(self.top.file(), &grown).map_err(host_error("write its header"))?;
            *header = grown;
            self.levels.grow_to(size);
        }
        Ok(size)
    }
}

impl Backend for LayeredDisk {
    fn geometry(&self) -> Geometry {
        let top = self.top.geometry();
        Geometry {
            capacity: self.levels.capacity(),
            physical_block: top.physical_block.max(BLOCK_SIZE),
            discard: self.levels.top.discard,
            ..top
        }
    }

    fn cache_mode(&self) -> CacheMode {
        self.top.cache_mode()
    }

    fn read_only(&self) -> bool {
        self.top.read_only()
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        let setup = EngineSetup { depth: LayerEngine::level_depth(setup.depth), ..*setup };
        let files = std::iter::once(&self.top).chain(&self.below);
        let engines = files.map(|file| file.engine(&setup)).collect::<Result<_, _>>()?;
        let what = "duplicate a descriptor for an engine of it";
        let engine = LayerEngine::new(Arc::clone(&self.levels), engines, &setup);
        Ok(Box::new(engine.map_err(host_error(&self.path, what))?))
    }

    fn status(&self) -> DiskStatus {
        self.top.status()
    }

    fn sync(&self) -> io::Result<()> {
        if self.levels.sync.is_clean(|| self.levels.top.map.has_dirty()) {
            return self.top.sync();
        }
        let started = loop {
            match self.levels.sync.start_within(Duration::from_millis(100)) {
                Some(started) => break started,
                // It may last as long as the store is full.
                None if self.top.status().enospc_hold.is_some() => {
                    return Err(io::Error::from_raw_os_error(libc::ENOSPC));
                }
                None => {}
            }
        };
        let result = self.write_map();
        self.levels.sync.end(&started, &result);
        result
    }

    fn stop_holding(&self) {
        self.top.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let mut at = from.0;
        let extents = std::iter::from_fn(|| {
            let extent = (at < self.levels.capacity()).then(|| self.extent(at))?;
            at = extent.as_ref().map_or(u64::MAX, |extent| at + extent.range.len);
            Some(extent)
        });
        collect_within(extents.take(limit), QUERY_TIME)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.top.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.top.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        // The size of a layer is in its header: the host cannot change it.
        size.map_or_else(|| Ok(self.levels.capacity()), |size| self.grow(size))
    }
}
