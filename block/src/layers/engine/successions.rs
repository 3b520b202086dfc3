//! The seat of an engine, and its engines for the files of a successor.

use std::ops::Range;

use super::super::seats::{Seat, Successor};
use crate::kick::Kick;
use crate::{Backend, EngineSetup, IoEngine, MemoryRegion, OpenError};

/// Engines for the files of a successor.
pub(super) struct Spares {
    /// The levels whose engines they succeed.
    pub(super) levels: Range<usize>,
    /// From the top down.
    pub(super) engines: Vec<Box<dyn IoEngine>>,
}

/// The part of an engine that a hold needs.
pub(super) struct Successions {
    pub(super) seat: Seat,
    /// For engines of the levels.
    depth: u16,
    memory: Box<[MemoryRegion]>,
    /// Those for the successor, once the engine is ready for it.
    pub(super) spares: Option<Spares>,
}

impl Successions {
    /// Engines for a queue as `setup` has it.
    pub(super) fn new(seat: Seat, setup: &EngineSetup<'_>) -> Self {
        let (depth, memory) = (setup.depth, setup.memory.into());
        Self { seat, depth, memory, spares: None }
    }

    /// Makes engines for the files of a successor.
    pub(super) fn engines(&self, successor: &Successor, kick: &Kick) -> Result<Spares, OpenError> {
        let setup = EngineSetup { depth: self.depth, memory: &self.memory, kick: kick.as_fd() };
        let engines = successor.files.iter().map(|file| file.engine(&setup));
        let engines = engines.collect::<Result<_, _>>()?;
        Ok(Spares { levels: successor.levels.clone(), engines })
    }
}
