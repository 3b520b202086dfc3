//! A layered disk: the control plane.

use std::any::Any;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::block_budget::BlockBudget;
use super::engine::LayerEngine;
use super::ephemeral::{self, EphemeralPlace, options_of_top};
use super::file::{host_error, write_header};
use super::header::Header;
use super::levels::{Answerer, Levels};
use super::map_flush::{self, TopFile};
use super::offline::clear_leftover;
use super::open::{self, Chain};
use super::seats::Seats;
use super::status::with_bases;
use super::succession;
use super::unit::{BLOCK, BLOCK_SIZE};
use crate::allocation::{Extents, QUERY_TIME, collect_within};
use crate::kick::Kick;
use crate::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Crossing, DiscardStats, DiskOptions,
    DiskStatus, EngineSetup, Extent, FileIdentity, Geometry, HostErrors, IoEngine, OpenError,
    RawFile, ResizeError,
};

/// A writable top over a base that is only read, each in a file.
#[derive(Debug)]
pub struct LayeredDisk {
    /// Without links.
    path: PathBuf,
    options: DiskOptions,
    /// The header of the top, as the file has it. Locked while the top grows or is succeeded.
    pub(super) header: Mutex<Header>,
    current: Mutex<Arc<DiskFiles>>,
    /// Requests are held for ENOSPC no more.
    has_stopped_holding: AtomicBool,
    pub(super) seats: Arc<Seats>,
    /// A frozen layer is being merged ([`super::LayerMerge`]).
    pub(super) is_merging: AtomicBool,
    /// The file below the top that the user has named as the base; `None` for an ephemeral disk.
    pub(super) named_base: Option<FileIdentity>,
}

/// The files of a disk, from one snapshot to the next.
#[derive(Debug)]
pub(super) struct DiskFiles {
    pub(super) levels: Arc<Levels>,
    pub(super) top: Arc<RawFile>,
    /// From below the top to the raw base.
    pub(super) below: Vec<Arc<RawFile>>,
    /// Of the tops before.
    pub(super) before: TopHistory,
}

impl LayeredDisk {
    /// Opens the layer at `path` and everything below it, of which `base` is one. The layer is
    /// locked as a disk is, what is below it against writers. A snapshot that was interrupted
    /// is completed.
    ///
    /// # Errors
    ///
    /// The host's error; a file is in use; one is no layer, or is damaged; or a base is missing,
    /// is not that of `base`, or has changed.
    pub fn open(path: &Path, base: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if !options.read_only {
            succession::complete(&path, options)?;
        }
        let mut chain = open::chain(&path, base, options)?;
        let named_base = FileIdentity::at(base).map_err(host_error(base, "find it"))?;
        if !options.read_only {
            clear_leftover(&path, &chain.top_file, &mut chain.header)?;
        }
        Ok(Self { named_base: Some(named_base), ..Self::new(path, chain, options.clone()) })
    }

    /// Opens a disk over `base` whose changes are gone at the end of the program, whatever ends
    /// it. It has at most `limit` bytes of changes: a request for more fails with ENOSPC. The
    /// cache mode of the options does not matter: flushes do nothing, and I/O goes through the page
    /// cache. No write is held. A base that is a layer is not frozen.
    ///
    /// # Errors
    ///
    /// The host's error; a file is in use by a writer; or the base is no raw image, no device and
    /// no layer that can be used.
    pub fn open_ephemeral(
        base: &Path,
        place: &EphemeralPlace,
        limit: Option<u64>,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let chain = ephemeral::chain(base, place, limit, options)?;
        Ok(Self::new(base.to_owned(), chain, options_of_top(options)))
    }

    fn new(path: PathBuf, chain: Chain, options: DiskOptions) -> Self {
        let Chain { header, top, below, top_file, files } = chain;
        let files = DiskFiles {
            levels: Arc::new(Levels::new(top, below, header.size)),
            top: Arc::new(top_file),
            below: files.into_iter().map(Arc::new).collect(),
            before: TopHistory::default(),
        };
        Self {
            path,
            options,
            header: Mutex::new(header),
            current: Mutex::new(Arc::new(files)),
            has_stopped_holding: AtomicBool::new(false),
            seats: Arc::default(),
            is_merging: AtomicBool::new(false),
            named_base: None,
        }
    }

    /// Its path, without links; of an ephemeral disk that of its base.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The options of its top.
    pub(super) fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// Its files now.
    pub(super) fn files(&self) -> Arc<DiskFiles> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces its files.
    pub(super) fn set_files(&self, files: DiskFiles) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(files);
        if self.has_stopped_holding.load(Ordering::SeqCst) {
            self.files().top.stop_holding();
        }
    }
}

impl DiskFiles {
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

    /// Makes all completed writes durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        map_flush::sync(&self.levels, &*self.top)
    }

    /// As [`DiskFiles::sync`]. Returns false if the host has not completed it in time: it is not
    /// waited for then.
    pub(super) fn sync_within(self: &Arc<Self>, limit: Duration) -> io::Result<bool> {
        let (sender, flushed) = mpsc::channel();
        let files = Arc::clone(self);
        let flush = move || _ = sender.send(files.sync());
        thread::Builder::new().name("flush".to_owned()).spawn(flush)?;
        flushed.recv_timeout(limit).map_or(Ok(false), |result| result.map(|()| true))
    }
}

impl TopFile for RawFile {
    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write_page(&self, page: &[u8], at: u64) -> io::Result<()> {
        self.file().write_all_at(page, at)
    }

    fn holds(&self) -> bool {
        self.status().enospc_hold.is_some()
    }
}

impl LayeredDisk {
    fn grow(&self, size: u64) -> Result<u64, ResizeError> {
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        let from = header.size;
        if size < from {
            return Err(ResizeError::Shrink { from, to: size });
        }
        if !size.is_multiple_of(BLOCK) {
            return Err(ResizeError::Unaligned { size, unit: BLOCK_SIZE });
        }
        if self.options.read_only {
            return Err(ResizeError::ReadOnly);
        }
        let host_error = |what| move |source| ResizeError::Host { what, source };
        if size > header.size_max() {
            let why = format!("its map is made for up to {} bytes", header.size_max());
            return Err(host_error("grow the layer")(io::Error::other(why)));
        }
        if size > from {
            // The file first: a header never tells of more than the file has.
            let (files, end) = (self.files(), header.data_at() + size);
            if end > files.top.geometry().capacity {
                files.top.resize(Some(end))?;
            }
            let grown = Header { size, ..header.clone() }.next();
            write_header(files.top.file(), &grown).map_err(host_error("write its header"))?;
            *header = grown;
            files.levels.grow_to(size);
        }
        Ok(size)
    }
}

impl Backend for LayeredDisk {
    fn geometry(&self) -> Geometry {
        let files = self.files();
        let top = files.top.geometry();
        Geometry {
            capacity: files.levels.capacity(),
            physical_block: top.physical_block.max(BLOCK_SIZE),
            discard: files.levels.top.discard,
            ..top
        }
    }

    fn cache_mode(&self) -> CacheMode {
        self.options.cache
    }

    fn read_only(&self) -> bool {
        self.options.read_only
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        let setup = EngineSetup { depth: LayerEngine::level_depth(setup.depth), ..*setup };
        let host_error = host_error(&self.path, "duplicate a descriptor for an engine of it");
        let kick = Kick::new(setup.kick).map_err(&host_error)?;
        let seat = self.seats.seat(kick.clone());
        // A snapshot waits for the engine of this seat.
        let files = self.files();
        let engines = std::iter::once(&files.top).chain(&files.below);
        let engines = engines.map(|file| file.engine(&setup)).collect::<Result<_, _>>()?;
        let levels = Arc::clone(&files.levels);
        let mut engine = LayerEngine::new(levels, engines, setup.depth, kick);
        engine.take_seat(seat, &setup);
        Ok(Box::new(engine))
    }

    fn status(&self) -> DiskStatus {
        let files = self.files();
        let status = with_bases(files.before.status(files.top.status()), &files.below);
        let budget = files.levels.top.budget.as_ref();
        DiskStatus { ephemeral: budget.map(BlockBudget::state), ..status }
    }

    fn sync(&self) -> io::Result<()> {
        self.files().sync()
    }

    fn stop_holding(&self) {
        // A snapshot may replace the top now.
        self.has_stopped_holding.store(true, Ordering::SeqCst);
        self.files().top.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let (files, mut at) = (self.files(), from.0);
        let extents = std::iter::from_fn(|| {
            let extent = (at < files.levels.capacity()).then(|| files.extent(at))?;
            at = extent.as_ref().map_or(u64::MAX, |extent| at + extent.range.len);
            Some(extent)
        });
        collect_within(extents.take(limit), QUERY_TIME)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.files().top.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.files().top.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        // The size of a layer is in its header: the host cannot change it.
        size.map_or_else(|| Ok(self.files().levels.capacity()), |size| self.grow(size))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The counters of the tops of a disk before the present one.
#[derive(Clone, Debug, Default)]
pub(super) struct TopHistory {
    discards: DiscardStats,
    host_errors: Option<HostErrors>,
}

impl TopHistory {
    /// With a top that is succeeded.
    pub(super) fn with(&self, top: &RawFile) -> Self {
        let DiskStatus { discards, host_errors, .. } = self.status(top.status());
        Self { discards, host_errors }
    }

    /// The status of a disk whose top has this one.
    fn status(&self, top: DiskStatus) -> DiskStatus {
        let host_errors = match (top.host_errors, &self.host_errors) {
            (Some(last), Some(before)) => {
                Some(HostErrors { requests: last.requests + before.requests, ..last })
            }
            (last, before) => last.or(*before),
        };
        DiskStatus { discards: top.discards + self.discards, host_errors, ..top }
    }
}
