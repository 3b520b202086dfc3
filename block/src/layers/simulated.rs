//! A layered disk of the simulator in `tests/`: the production engine between those of simulated
//! files. See [`crate::simulation`].

use std::io;
use std::sync::Arc;

use super::engine::LayerEngine;
pub use super::engine::SimulatedSleep;
use super::levels::{Answerer, Level, LevelMap, Levels, Top, discard_limits};
use super::map::LayerMap;
use super::map_flush::{self, TopFile};
use crate::kick::Kick;
use crate::{CacheMode, EngineSetup, FlushAction, Geometry, IoEngine, OpenError};

/// A file of a simulated disk.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedLevel<'a> {
    /// Position of the disk's first byte in the file.
    pub data_at: u64,
    /// Size of its disk in bytes.
    pub size: u64,
    /// The first page of its map; `None` of a raw base.
    pub map: Option<&'a [u8]>,
}

/// How a simulated top is written by the control plane.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedTop<S, W> {
    /// Makes completed writes durable.
    pub sync: S,
    /// Writes bytes at a byte of the file.
    pub write: W,
}

impl<S, W> TopFile for SimulatedTop<S, W>
where
    S: Fn() -> io::Result<()>,
    W: Fn(&[u8], u64) -> io::Result<()>,
{
    fn sync_data(&self) -> io::Result<()> {
        (self.sync)()
    }

    fn write_page(&self, page: &[u8], at: u64) -> io::Result<()> {
        (self.write)(page, at)
    }

    fn holds(&self) -> bool {
        false
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SimulatedLayers {
    levels: Arc<Levels>,
    top: Geometry,
}

impl SimulatedLayers {
    /// A disk of these levels, from the top down, whose top has a file of this geometry. Its size
    /// is that of the top.
    #[must_use]
    pub fn new(files: &[SimulatedLevel<'_>], top: Geometry, cache: CacheMode) -> Self {
        let map = |bytes: Option<&[u8]>| {
            let map = LayerMap::new(1);
            bytes.into_iter().for_each(|bytes| map.load(0, bytes));
            map
        };
        let first = files.first().copied();
        let SimulatedLevel { data_at, size, map: bits } =
            first.unwrap_or(SimulatedLevel { data_at: 0, size: 0, map: None });
        let level = |file: &SimulatedLevel<'_>| {
            let map = file.map.map_or(LevelMap::Raw, |bytes| LevelMap::Layer(map(Some(bytes))));
            Level { data_at: file.data_at, size: file.size, map }
        };
        let of_top = Top {
            data_at,
            map: map(bits),
            logical_block: top.logical_block,
            is_read_only: false,
            ignores_flushes: cache.flush_action() == FlushAction::Ignore,
            discard: top.discard.map(|limits| discard_limits(limits, data_at)),
            budget: None,
            unflushed: None,
        };
        let below = files.iter().skip(1).map(level).collect();
        Self { levels: Arc::new(Levels::new(of_top, below, size)), top }
    }

    /// See [`crate::Backend::geometry`].
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let (capacity, discard) = (self.levels.capacity(), self.levels.top.discard);
        Geometry { capacity, discard, ..self.top }
    }

    /// Makes an engine over those of the levels, from the top down, which `engines` makes. With
    /// requests in flight in several levels it sleeps by `sleep`.
    ///
    /// # Errors
    ///
    /// Those of `engines`; or the process is out of descriptors.
    pub fn engine(
        &self,
        setup: &EngineSetup<'_>,
        sleep: SimulatedSleep,
        engines: impl FnOnce(&EngineSetup<'_>) -> Result<Vec<Box<dyn IoEngine>>, OpenError>,
    ) -> Result<Box<dyn IoEngine>, OpenError> {
        let setup = EngineSetup { depth: LayerEngine::level_depth(setup.depth), ..*setup };
        let host_error = |source| OpenError::Host { path: "simulated".into(), what: "use", source };
        let kick = Kick::new(setup.kick).map_err(host_error)?;
        let levels = Arc::clone(&self.levels);
        let mut engine = LayerEngine::new(levels, engines(&setup)?, setup.depth, kick);
        engine.sleep_by(sleep);
        Ok(Box::new(engine))
    }

    /// The level that answers for the byte `at` now, and its place in the file; `None` if it reads
    /// zero.
    #[must_use]
    pub fn place(&self, at: u64) -> Option<(usize, u64)> {
        match self.levels.piece(0, at, at + 1) {
            (Answerer::Level(level), _) => Some((level, self.levels.place(level, at))),
            (Answerer::Zeroes, _) => None,
        }
    }

    /// See [`crate::Backend::sync`].
    ///
    /// # Errors
    ///
    /// Those of `top`.
    pub fn sync_with<S, W>(&self, top: &SimulatedTop<S, W>) -> io::Result<()>
    where
        S: Fn() -> io::Result<()>,
        W: Fn(&[u8], u64) -> io::Result<()>,
    {
        map_flush::sync(&self.levels, top)
    }
}
