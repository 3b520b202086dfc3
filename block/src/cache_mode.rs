//! The cache modes of a disk, and the one table that says what each of them means.
//!
//! Every other place asks this table; none decides for itself.

use std::fmt;
use std::str::FromStr;

use crate::request::Durability;

/// How a disk uses the host's page cache, and when a completed write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheMode {
    /// Page cache bypassed (`O_DIRECT`); durable after a flush.
    None,
    /// Page cache bypassed; every write durable when it completes.
    DirectSync,
    /// Page cache used; every write durable when it completes.
    WriteThrough,
    /// Page cache used; durable after a flush.
    WriteBack,
    /// Page cache used; flushes are ignored. A host crash loses data the guest flushed.
    Unsafe,
}

/// What a guest's flush makes the host do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushAction {
    /// `fdatasync(2)` on the backing file.
    Sync,
    /// Complete at once: a mode that promises nothing.
    Ignore,
}

struct Row {
    name: &'static str,
    direct: bool,
    write: Durability,
    flush: FlushAction,
    write_cache: bool,
}

impl CacheMode {
    /// All modes, in the order the documentation lists them.
    pub const ALL: [Self; 5] =
        [Self::None, Self::DirectSync, Self::WriteThrough, Self::WriteBack, Self::Unsafe];

    /// The table.
    const fn row(self) -> Row {
        use Durability::{Durable, Volatile};
        use FlushAction::{Ignore, Sync};
        let (name, direct, write, flush, write_cache) = match self {
            Self::None => ("none", true, Volatile, Sync, true),
            Self::DirectSync => ("directsync", true, Durable, Sync, false),
            Self::WriteThrough => ("writethrough", false, Durable, Sync, false),
            Self::WriteBack => ("writeback", false, Volatile, Sync, true),
            Self::Unsafe => ("unsafe", false, Volatile, Ignore, true),
        };
        Row { name, direct, write, flush, write_cache }
    }

    /// The name used in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether the host's page cache is bypassed (`O_DIRECT`).
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.row().direct
    }

    /// The durability of a write that asks for nothing more, while the write cache is as
    /// the mode sets it.
    #[must_use]
    pub const fn write_durability(self) -> Durability {
        self.row().write
    }

    /// What a flush does.
    #[must_use]
    pub const fn flush_action(self) -> FlushAction {
        self.row().flush
    }

    /// Whether the guest is told of a volatile write cache at the start.
    #[must_use]
    pub const fn has_write_cache(self) -> bool {
        self.row().write_cache
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a cache mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown cache mode {0:?}")]
pub struct UnknownCacheMode(String);

impl FromStr for CacheMode {
    type Err = UnknownCacheMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| UnknownCacheMode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_found_by_its_name() {
        for mode in CacheMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert!("Writeback".parse::<CacheMode>().is_err());
    }

    /// A guest that is told of no write cache never flushes, so its writes must be durable.
    #[test]
    fn a_mode_without_a_write_cache_has_durable_writes() {
        for mode in CacheMode::ALL {
            let durable = mode.write_durability() == Durability::Durable;
            assert_eq!(durable, !mode.has_write_cache(), "{mode}");
        }
    }
}
