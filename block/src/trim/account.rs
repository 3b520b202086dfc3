//! What became of the bytes that guests asked to discard. One account per disk, shared by its engines.

use std::sync::atomic::{AtomicU64, Ordering};

/// What became of what was asked to be discarded, in bytes since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardStats {
    /// Asked for, by discards and by zeroings that allow it.
    pub requested: u64,
    /// Freed only because neighbouring pieces were gathered: no one piece was a whole granule. Part of `freed`.
    pub merged: u64,
    /// Given back: the host took the call.
    pub freed: u64,
    /// Not given back: parts of granules, and what the host refused.
    pub skipped: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Account {
    asked: AtomicU64,
    gathered: AtomicU64,
    freed: AtomicU64,
}

impl Account {
    pub(crate) fn asked(&self, bytes: u64) {
        self.asked.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn gathered(&self, bytes: u64) {
        self.gathered.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The account as it stands. What is under way counts as skipped until it is freed.
    pub(crate) fn read(&self) -> DiscardStats {
        // In this order, so that what is freed meanwhile was asked before.
        let freed = self.freed.load(Ordering::Relaxed);
        let gathered = self.gathered.load(Ordering::Relaxed).min(freed);
        let asked = self.asked.load(Ordering::Relaxed);
        DiscardStats {
            requested: asked,
            merged: gathered,
            freed,
            skipped: asked.saturating_sub(freed),
        }
    }
}
