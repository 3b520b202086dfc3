//! The simulated disk: a [`Backend`] whose engines are the production io_uring engine over rings of
//! the simulated [`Host`].

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use block::simulation::{
    Clock, Ring, RingResult, SimulatedDisk, SimulatedLayers, SimulatedLevel, SimulatedParameters,
    SimulatedTop,
};
use block::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Crossing, DiscardLimits, DiskOptions,
    DiskStatus, EngineSetup, Extent, Geometry, IoEngine, OnEnospc, OpenError, ResizeError,
};
use io_uring::squeue;

use super::call::errno;
use super::chain::Chain;
use super::entry::Entry;
use super::host::{SharedHost, is_ready};
use super::plan::Plan;
use super::watched_engine::WatchedEngine;

/// A disk of the simulated host.
pub(super) struct SimDisk {
    host: SharedHost,
    /// The only file, or that of the top.
    disk: SimulatedDisk,
    /// The levels below the top of a layered disk.
    layers: Option<LayersBelow>,
    clock: Clock,
    /// Its engines are thread pools.
    uses_threads: bool,
    /// Other disks are served by the same queues: the kicks of its engines are real eventfds.
    has_neighbours: bool,
}

/// A layered disk without the file of its top.
struct LayersBelow {
    chain: Chain,
    files: Vec<SimulatedDisk>,
    layers: SimulatedLayers,
}

impl SimDisk {
    /// Opens the disk; `None` while the lock on its image is held.
    pub(super) fn open(
        plan: &Plan,
        clock: Clock,
        host: SharedHost,
        image: &File,
    ) -> Result<Option<Self>, String> {
        let block = u32::try_from(plan.block * 512).unwrap();
        let host_block = u32::try_from(plan.host_block * 512).unwrap();
        let top = plan.chain.as_ref().map_or(plan.sectors, |chain| chain.file(0).len());
        let geometry = Geometry {
            capacity: top as u64 * 512,
            logical_block: block,
            physical_block: host_block,
            optimal_io: 0,
            discard: Some(DiscardLimits {
                granularity: u32::try_from(plan.granule() * 512).unwrap(),
                alignment: 0,
                reads_zero: !plan.block_device || plan.is_volume(),
            }),
        };
        let hold = |deadline| OnEnospc::Hold { deadline };
        let options = DiskOptions {
            on_enospc: plan.hold.map_or(OnEnospc::Report, hold),
            // A few bounce buffers, so that requests wait for one.
            copy_memory: 4 * u64::from(host_block),
            detect_zeroes: plan.detect_zeroes,
            ..DiskOptions::new(plan.mode)
        };
        let block_device = plan.block_device;
        let parameters = SimulatedParameters { geometry, options, block_device, host_block };
        let disk = SimulatedDisk::open(parameters.clone(), clock.clone(), image)
            .map_err(|error| format!("cannot open the image: {error}"))?;
        let Some(disk) = disk else { return Ok(None) };
        host.lock().open_image();
        let layers = plan.chain.as_ref().map(|chain| {
            let below = |level: usize| {
                let file = image.try_clone().unwrap();
                let capacity = chain.file(level).len() as u64 * 512;
                let geometry = Geometry { capacity, ..geometry };
                let options = parameters.options.clone().read_only();
                let parameters = SimulatedParameters { geometry, options, ..parameters.clone() };
                SimulatedDisk::new(parameters, clock.clone(), file)
            };
            let files = (1..chain.files()).map(below).collect();
            let layers = open_layers(chain, &host, geometry, plan.mode);
            LayersBelow { chain: chain.clone(), files, layers }
        });
        let (uses_threads, has_neighbours) = (plan.uses_threads, plan.has_neighbours);
        Ok(Some(Self { host, disk, layers, clock, uses_threads, has_neighbours }))
    }

    /// The sector of the medium that has a sector of the disk now; `None` if it is zero.
    pub(super) fn place(&self, sector: usize) -> Option<usize> {
        let Some(LayersBelow { chain, layers, .. }) = &self.layers else { return Some(sector) };
        let (level, at) = layers.place(512 * sector as u64)?;
        Some(chain.file(level).start + at as usize / 512)
    }

    /// Makes an engine of a layered disk, and of each of its files.
    fn make_layered(
        &self,
        below: &LayersBelow,
        setup: &EngineSetup<'_>,
    ) -> Result<Box<dyn IoEngine>, OpenError> {
        let (host, clock) = (self.host.clone(), self.clock.clone());
        let sleep = move |events: BorrowedFd<'_>, due: Option<Instant>| {
            if is_ready(events) || due.is_some_and(|due| due <= clock.now()) {
                return Ok(());
            }
            host.lock().slept_until = Some(due);
            Err(io::Error::from_raw_os_error(errno::TIME))
        };
        below.layers.engine(setup, Box::new(sleep), |setup| {
            let disks = std::iter::once(&self.disk).chain(&below.files).enumerate();
            let engines = disks.map(|(level, disk)| self.make_engine(disk, level, setup));
            engines.map(|made| Ok(made?.1)).collect()
        })
    }

    /// Makes an engine of a file. Returns the number of its ring as well.
    fn make_engine(
        &self,
        disk: &SimulatedDisk,
        level: usize,
        setup: &EngineSetup<'_>,
    ) -> Result<(usize, Box<dyn IoEngine>), OpenError> {
        let files = disk.open_for_engine()?;
        let id = self.host.lock().open_ring(setup.depth, files, level);
        if self.has_neighbours {
            self.host.lock().watch_kick(id, setup.kick);
        }
        let ring = SimRing { host: self.host.clone(), id };
        if !self.uses_threads {
            return Ok((id, disk.engine(ring, setup)?));
        }
        let host_error = |source| OpenError::Host { path: "simulated".into(), what: "use", source };
        Ok((id, disk.thread_engine(ring, setup).map_err(host_error)?))
    }
}

/// Opens the layers, whose maps the medium has.
fn open_layers(
    chain: &Chain,
    host: &SharedHost,
    top: Geometry,
    mode: CacheMode,
) -> SimulatedLayers {
    let host = host.lock();
    let map = |level| {
        let sectors = chain.map(level)?;
        Some(sectors.flat_map(|sector| *host.medium.visible(sector)).collect::<Vec<u8>>())
    };
    let maps: Vec<_> = (0..chain.files()).map(map).collect();
    let files: Vec<_> = (0..chain.files())
        .map(|level| SimulatedLevel {
            data_at: 512 * chain.data_at(level) as u64,
            size: 512 * chain.size(level) as u64,
            map: maps[level].as_deref(),
        })
        .collect();
    SimulatedLayers::new(&files, top, mode)
}

impl Backend for SimDisk {
    fn geometry(&self) -> Geometry {
        self.layers.as_ref().map_or_else(|| self.disk.geometry(), |below| below.layers.geometry())
    }

    fn cache_mode(&self) -> CacheMode {
        self.disk.options().cache
    }

    fn read_only(&self) -> bool {
        false
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        if let Some(below) = &self.layers {
            return self.make_layered(below, setup);
        }
        let (ring, engine) = self.make_engine(&self.disk, 0, setup)?;
        if !self.has_neighbours {
            return Ok(engine);
        }
        Ok(Box::new(WatchedEngine { engine, host: self.host.clone(), ring }))
    }

    fn status(&self) -> DiskStatus {
        self.disk.status()
    }

    fn stop_holding(&self) {
        self.disk.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let len = self.geometry().capacity.saturating_sub(from.0);
        let all = Extent { range: ByteRange { start: from, len }, data: true };
        Ok([all].into_iter().filter(|_| len > 0).take(limit).collect())
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(None)
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        Ok(None)
    }

    fn resize(&self, _size: Option<u64>) -> Result<u64, ResizeError> {
        Err(ResizeError::NotAFile)
    }

    fn sync(&self) -> io::Result<()> {
        let sync = || {
            self.disk.sync_with(|| {
                self.host.lock().sync_control_plane().map_err(io::Error::from_raw_os_error)
            })
        };
        let Some(below) = &self.layers else { return sync() };
        let write = |bytes: &[u8], at: u64| {
            self.host.lock().write_by_control_plane(at as usize / 512, bytes);
            Ok(())
        };
        below.layers.sync_with(&SimulatedTop { sync, write })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// An engine's handle of a simulated ring.
struct SimRing {
    host: SharedHost,
    id: usize,
}

impl Ring for SimRing {
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        let mut host = self.host.lock();
        match Entry::decode(entry) {
            Ok(entry) => host.push(self.id, entry),
            Err(reason) => {
                host.reject(reason);
                false
            }
        }
    }

    fn has_unsubmitted(&mut self) -> bool {
        self.host.lock().has_unsubmitted(self.id)
    }

    fn wants_entering(&mut self) -> bool {
        self.host.lock().wants_entering(self.id)
    }

    fn submit_and_wait(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.host.lock().enter(self.id, want, timeout).map_err(io::Error::from_raw_os_error)
    }

    fn next_result(&mut self) -> Option<RingResult> {
        self.host.lock().next_result(self.id)
    }

    fn signal_to(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.host.lock().signal_to(self.id, eventfd);
        Ok(())
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        self.host.lock().close_ring(self.id);
    }
}
