//! Counters of discarded bytes. One set per disk, shared by its engines.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes discarded since the disk was opened, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardStats {
    /// Requested by discards, and by zeroings that permit deallocation.
    pub requested: u64,
    /// Part of `freed` that was freed only because partial granules were merged.
    pub merged: u64,
    /// The host has accepted the call that deallocates them.
    pub freed: u64,
    /// Not freed: partial granules, and ranges that the host refused or has not answered yet.
    pub skipped: u64,
}

impl Add for DiscardStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requested: self.requested + other.requested,
            merged: self.merged + other.merged,
            freed: self.freed + other.freed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct DiscardCounters {
    requested: AtomicU64,
    merged: AtomicU64,
    freed: AtomicU64,
}

impl DiscardCounters {
    pub(crate) fn add_requested(&self, bytes: u64) {
        self.requested.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_merged(&self, bytes: u64) {
        self.merged.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counters now. Bytes in flight count as skipped until they are freed.
    pub(crate) fn read(&self) -> DiscardStats {
        // In this order, so that freed bytes are among the requested ones.
        let freed = self.freed.load(Ordering::Relaxed);
        let merged = self.merged.load(Ordering::Relaxed).min(freed);
        let requested = self.requested.load(Ordering::Relaxed);
        DiscardStats { requested, merged, freed, skipped: requested.saturating_sub(freed) }
    }
}
