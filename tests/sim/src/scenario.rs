//! The classes of schedules, by the names of `make sim MODE=`.

use std::fmt;
use std::str::FromStr;

use block::{CacheMode, Named};
use fixtures::Random;

/// Class of schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// A cache mode with its default write cache.
    Mode(CacheMode),
    /// A mode with a write cache that the driver switches (CONFIG_WCE).
    Toggle,
    /// A mode with a write cache and a driver without FLUSH.
    NoFlush,
    /// A mode on a host with larger blocks than the guest's: partial writes are read-modify-write.
    Blocks,
    /// A mode with `on_enospc = "hold"` on a host that is full at times.
    Hold,
    /// A mode with `detect_zeroes` and a driver that writes zeroes.
    Zeroes,
    /// A mode whose process is killed while the kernel works on its calls. Another one follows.
    Kill,
    /// A mode with compare-and-writes beside the driver's requests.
    Compare,
    /// A mode, and at times another scenario's events, with the thread-pool engine.
    Threads,
    /// A mode, and at times another scenario's events, with SCSI commands and task management.
    Scsi,
    /// Several SCSI disks on the same queues, each with a mode and events of its own, and with a
    /// host of its own that at times completes nothing.
    Units,
    /// A disk of several layers over a base with a mode, or with any, and at times another
    /// scenario's events or SCSI commands.
    Layers(Option<CacheMode>),
}

impl Scenario {
    /// All scenarios.
    pub const ALL: [Self; 16] = [
        Self::Mode(CacheMode::None),
        Self::Mode(CacheMode::DirectSync),
        Self::Mode(CacheMode::WriteThrough),
        Self::Mode(CacheMode::WriteBack),
        Self::Mode(CacheMode::Unsafe),
        Self::Toggle,
        Self::NoFlush,
        Self::Blocks,
        Self::Hold,
        Self::Zeroes,
        Self::Kill,
        Self::Compare,
        Self::Threads,
        Self::Scsi,
        Self::Units,
        Self::Layers(None),
    ];

    /// The cache mode of a schedule.
    pub(super) fn mode(self, random: &mut Random) -> CacheMode {
        let with_cache = [CacheMode::None, CacheMode::WriteBack, CacheMode::Unsafe];
        match self {
            Self::Mode(mode) | Self::Layers(Some(mode)) => mode,
            Self::Toggle | Self::NoFlush => with_cache[random.below(with_cache.len())],
            Self::Blocks => {
                // Mostly direct I/O, where the engine does the read-modify-write.
                [CacheMode::None, CacheMode::DirectSync, CacheMode::None, CacheMode::WriteBack]
                    [random.below(4)]
            }
            Self::Hold
            | Self::Zeroes
            | Self::Kill
            | Self::Compare
            | Self::Threads
            | Self::Layers(None) => CacheMode::ALL[random.below(CacheMode::ALL.len())],
            Self::Scsi | Self::Units => {
                // Mostly with a write cache, and never without promises.
                use CacheMode::{DirectSync, None, WriteBack, WriteThrough};
                [None, WriteBack, None, WriteBack, None, WriteBack, DirectSync, WriteThrough]
                    [random.below(8)]
            }
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => f.pad(mode.name()),
            Self::Toggle => f.pad("toggle"),
            Self::NoFlush => f.pad("noflush"),
            Self::Blocks => f.pad("blocks"),
            Self::Hold => f.pad("hold"),
            Self::Zeroes => f.pad("zeroes"),
            Self::Kill => f.pad("kill"),
            Self::Compare => f.pad("compare"),
            Self::Threads => f.pad("threads"),
            Self::Scsi => f.pad("scsi"),
            Self::Units => f.pad("units"),
            Self::Layers(None) => f.pad("layers"),
            Self::Layers(Some(mode)) => f.pad(&format!("layers-{}", mode.name())),
        }
    }
}

/// The text is not the name of a scenario.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{0:?} is not one of none, directsync, writethrough, writeback, unsafe, toggle, noflush, blocks, \
     hold, zeroes, kill, compare, threads, scsi, units, layers, layers-none and so on"
)]
pub struct UnknownScenario(String);

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let layers = CacheMode::ALL.iter().map(|mode| Self::Layers(Some(*mode)));
        Self::ALL
            .into_iter()
            .chain(layers)
            .find(|scenario| scenario.to_string() == text)
            .ok_or_else(|| UnknownScenario(text.to_owned()))
    }
}
