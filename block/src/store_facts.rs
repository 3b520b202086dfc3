//! The storage below an open disk, as far as it matters for the disk. Control thread only.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::{
    DiskOptions, FlushAction, FlushPromise, HostCache, LateEnospc, OnEnospc, Problem, StableCopies,
    StableCopyMode, StoreStack,
};

/// Consequences of the storage below a disk, as they were when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreFacts {
    /// The direct transfers that are copied, and the reasons.
    pub copied: StableCopies,
    /// The direct transfers that the store needs copied and that are not: `stable_copies = "off"`.
    pub not_copied: StableCopies,
    /// The problems of the store with flushes; empty if the disk promises none.
    pub flush_problems: Vec<Problem>,
    /// The storey that serves direct I/O from memory of the host, if the disk does direct I/O.
    pub host_cache: Option<HostCache>,
    /// The storey for which `on_enospc = "hold"` may come too late, in this cache mode.
    pub late_enospc: Option<LateEnospc>,
    /// The ZFS dataset whose quota fails writes with EIO, which `on_enospc = "hold"` does not hold.
    pub volume_quota: Option<String>,
    /// The files that the disk only reads, if it is a layer: from below the top to the raw base.
    pub bases: Vec<BaseFacts>,
}

/// Consequences of the storage below a base of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFacts {
    /// Its file or device.
    pub path: PathBuf,
    /// Only what matters for data that is only read: its problems are those that lose it at a power
    /// cut.
    pub store: StoreFacts,
}

/// How long a query waits for the programs of ZFS.
const LIMIT: Duration = Duration::from_secs(2);

impl StoreFacts {
    /// The facts of the disk in `file`. Runs the programs of ZFS for a dataset, for at most 2 s.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn of(file: &File, options: &DiskOptions) -> io::Result<Self> {
        if !options.cache.is_direct() && !promises_flushes(options) && !holds_buffered(options) {
            return Ok(Self::default());
        }
        Ok(Self::new(&StoreStack::of_within(file, LIMIT)?, options))
    }

    /// The facts of the base of a disk with these options in `file`. Runs the programs of ZFS only
    /// for direct I/O.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn of_base(file: &File, options: &DiskOptions) -> io::Result<Self> {
        if !keeps_data(options) {
            return Ok(Self::default());
        }
        let stack = match options.cache.is_direct() {
            true => StoreStack::of_within(file, LIMIT)?,
            false => StoreStack::without_programs(file)?,
        };
        Ok(Self::new_base(&stack, options))
    }

    fn new_base(stack: &StoreStack, options: &DiskOptions) -> Self {
        let flush_problems = stack.memory_problems();
        Self { flush_problems, ..Self::new(stack, &options.clone().read_only()) }
    }

    /// The worst consequence of the problems with flushes, and of those of the bases.
    #[must_use]
    pub fn flush_promise(&self) -> FlushPromise {
        let problems = self.flush_problems.iter().map(|problem| problem.flush);
        let bases = self.bases.iter().map(|base| base.store.flush_promise());
        problems.chain(bases).max().unwrap_or(FlushPromise::Kept)
    }

    /// The facts of a disk with these options on `stack`.
    #[must_use]
    pub fn new(stack: &StoreStack, options: &DiskOptions) -> Self {
        let flush_problems = if promises_flushes(options) { stack.problems() } else { Vec::new() };
        let late_enospc = if holds_buffered(options) { stack.late_enospc() } else { None };
        let quota = stack.volume_quota().filter(|_| holds(options)).map(str::to_owned);
        let facts = Self { flush_problems, late_enospc, volume_quota: quota, ..Self::default() };
        if !options.cache.is_direct() {
            return facts;
        }
        let facts = Self { host_cache: stack.host_cache(), ..facts };
        let mut needed = stack.stable_copies();
        if options.read_only {
            needed.writes = None;
        }
        let always = || Some("stable_copies = \"on\"".to_owned());
        match options.stable_copies {
            StableCopyMode::Auto => Self { copied: needed, ..facts },
            StableCopyMode::Off => Self { not_copied: needed, ..facts },
            StableCopyMode::On => {
                Self { copied: StableCopies { writes: always(), reads: always() }, ..facts }
            }
        }
    }
}

/// Whether writes are to be held for ENOSPC.
fn holds(options: &DiskOptions) -> bool {
    options.on_enospc != OnEnospc::Report && !options.read_only
}

fn holds_buffered(options: &DiskOptions) -> bool {
    holds(options) && !options.cache.is_direct()
}

fn promises_flushes(options: &DiskOptions) -> bool {
    !options.read_only && keeps_data(options)
}

/// Whether the disk is to survive a power cut.
fn keeps_data(options: &DiskOptions) -> bool {
    options.cache.flush_action() == FlushAction::Sync
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheMode, FileSystem, Storey, StoreyKind, ZfsDataset};

    /// A flush that ends without effect is no matter of a base, which nothing writes.
    #[test]
    fn only_memory_loses_a_base() {
        let properties = vec![("sync".to_owned(), "disabled".to_owned())];
        let zfs = Some(ZfsDataset { properties, ..ZfsDataset::default() });
        let store = |fs_type: &str, zfs| StoreStack {
            root: Storey {
                kind: StoreyKind::FileSystem(FileSystem {
                    fs_type: fs_type.to_owned(),
                    options: Vec::new(),
                    btrfs: None,
                    zfs,
                }),
                name: "/srv".to_owned(),
                device: None,
                queue: None,
                below: Vec::new(),
            },
        };
        let (pool, memory) = (store("zfs", zfs), store("ramfs", None));
        let options = DiskOptions::new(CacheMode::None);
        assert_eq!(StoreFacts::new(&pool, &options).flush_problems.len(), 1);
        let base = StoreFacts::new_base(&pool, &options);
        assert_eq!(base.flush_problems, []);
        assert!(base.copied.reads.is_some() && base.copied.writes.is_none(), "{base:?}");
        assert_eq!(StoreFacts::new_base(&memory, &options).flush_problems.len(), 1);
    }
}
