//! The cache modes of a disk, and the one table that says what each of them means.
//!
//! Everything that depends on the cache mode asks this table.

use std::fmt;

use crate::{Durability, Named};

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

/// The host's action for a guest's flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushAction {
    /// `fdatasync(2)` on the backing file.
    Sync,
    /// Nothing: the mode promises no durability.
    Ignore,
}

struct ModeRow {
    name: &'static str,
    direct: bool,
    write: Durability,
    flush: FlushAction,
    write_cache: bool,
}

impl CacheMode {
    /// The table.
    const fn row(self) -> ModeRow {
        use Durability::{Durable, Volatile};
        use FlushAction::{Ignore, Sync};
        let (name, direct, write, flush, write_cache) = match self {
            Self::None => ("none", true, Volatile, Sync, true),
            Self::DirectSync => ("directsync", true, Durable, Sync, false),
            Self::WriteThrough => ("writethrough", false, Durable, Sync, false),
            Self::WriteBack => ("writeback", false, Volatile, Sync, true),
            Self::Unsafe => ("unsafe", false, Volatile, Ignore, true),
        };
        ModeRow { name, direct, write, flush, write_cache }
    }

    /// Whether the host's page cache is bypassed (`O_DIRECT`).
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.row().direct
    }

    /// The mode that bypasses the page cache and promises as much, or more.
    #[must_use]
    pub const fn direct_equivalent(self) -> Self {
        match self.row().write {
            Durability::Durable => Self::DirectSync,
            Durability::Volatile => Self::None,
        }
    }

    /// The durability of a write without FUA, with the write cache as the mode sets it.
    #[must_use]
    pub const fn write_durability(self) -> Durability {
        self.row().write
    }

    /// The host's action for a flush.
    #[must_use]
    pub const fn flush_action(self) -> FlushAction {
        self.row().flush
    }

    /// Whether the guest sees a volatile write cache after reset.
    #[must_use]
    pub const fn has_write_cache(self) -> bool {
        self.row().write_cache
    }
}

impl Named for CacheMode {
    const ALL: &'static [Self] =
        &[Self::None, Self::DirectSync, Self::WriteThrough, Self::WriteBack, Self::Unsafe];

    fn name(self) -> &'static str {
        self.row().name
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_equivalent_has_the_same_write_cache() {
        for mode in CacheMode::ALL {
            let direct = mode.direct_equivalent();
            assert!(direct.is_direct(), "{mode}");
            assert_eq!(direct.has_write_cache(), mode.has_write_cache(), "{mode}");
        }
    }

    /// A guest that sees no write cache never flushes, so its writes must be durable.
    #[test]
    fn a_mode_without_a_write_cache_has_durable_writes() {
        for mode in CacheMode::ALL {
            let durable = mode.write_durability() == Durability::Durable;
            assert_eq!(durable, !mode.has_write_cache(), "{mode}");
        }
    }
}
