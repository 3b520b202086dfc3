//! The storage below an open disk, as far as it matters for the disk. Control thread only.

use std::fs::File;
use std::io;
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
}

impl StoreFacts {
    /// The facts of the disk in `file`. Runs the programs of ZFS for a dataset, for at most 2 s.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(crate) fn of(file: &File, options: &DiskOptions) -> io::Result<Self> {
        const LIMIT: Duration = Duration::from_secs(2);
        if !options.cache.is_direct() && !promises_flushes(options) && !holds_buffered(options) {
            return Ok(Self::default());
        }
        Ok(Self::new(&StoreStack::of_within(file, LIMIT)?, options))
    }

    /// The worst consequence of the problems with flushes.
    #[must_use]
    pub fn flush_promise(&self) -> FlushPromise {
        let problems = self.flush_problems.iter().map(|problem| problem.flush);
        problems.max().unwrap_or(FlushPromise::Kept)
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
    !options.read_only && options.cache.flush_action() == FlushAction::Sync
}
