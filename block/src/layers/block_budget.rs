//! The blocks that an ephemeral top may have. Any engine.
//!
//! A block counts once it is written for the first time, and for good: a discard frees its space,
//! but a later write to it is forwarded without a look at the budget.

use std::sync::atomic::{AtomicU64, Ordering};

use super::map::LayerMap;
use super::unit::BLOCK;
use crate::{EphemeralState, LogLimit};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BlockBudget {
    disk: String,
    /// Blocks.
    limit: Option<u64>,
    /// Blocks that were written, or are being written.
    used: AtomicU64,
    refused: AtomicU64,
    log: LogLimit,
}

impl BlockBudget {
    /// A budget of `limit` bytes for the disk of this name.
    pub(super) fn new(disk: String, limit: Option<u64>) -> Self {
        let limit = limit.map(|bytes| bytes / BLOCK);
        let (used, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { disk, limit, used, refused, log: LogLimit::default() }
    }

    /// Takes the blocks from `first` to `end` that the top does not answer for, unless they exceed
    /// the budget: then a request is refused if that `is_final`. No other request changes these
    /// blocks.
    pub(super) fn take(&self, map: &LayerMap, first: u64, end: u64, is_final: bool) -> bool {
        let blocks = unanswered(map, first, end);
        let limit = self.limit.unwrap_or(u64::MAX);
        let take = |used: u64| used.checked_add(blocks).filter(|used| *used <= limit);
        let is_taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
        if !is_taken && is_final {
            self.refused.fetch_add(1, Ordering::Relaxed);
            if let Some(suppressed) = self.log.check() {
                let limit = limit.saturating_mul(BLOCK);
                tracing::warn!(
                    disk = self.disk,
                    limit,
                    suppressed,
                    "a write exceeds ephemeral_limit: it fails with ENOSPC"
                );
            }
        }
        is_taken
    }

    /// Gives back the blocks from `first` to `end` that were taken, and that the top does not
    /// answer for nevertheless. No other request changes these blocks.
    pub(super) fn give_back(&self, map: &LayerMap, first: u64, end: u64) {
        self.used.fetch_sub(unanswered(map, first, end), Ordering::AcqRel);
    }

    pub(super) fn state(&self) -> EphemeralState {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK);
        EphemeralState {
            used: bytes(self.used.load(Ordering::Acquire)),
            limit: self.limit.map(bytes),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Number of the blocks from `first` to `end` that the top does not answer for.
fn unanswered(map: &LayerMap, first: u64, end: u64) -> u64 {
    let (mut block, mut blocks) = (first, 0);
    while block < end {
        let (is_set, next) = map.run(block, end);
        blocks += if is_set { 0 } else { next - block };
        block = next;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_taken_once() {
        let (map, budget) = (LayerMap::new(1), BlockBudget::new("a".to_owned(), Some(4 * BLOCK)));
        let used = || budget.state().used / BLOCK;
        map.set(1, 2);
        assert!(budget.take(&map, 0, 3, true) && used() == 2);
        budget.give_back(&map, 0, 1);
        map.set(2, 3);
        assert!(budget.take(&map, 1, 3, true) && used() == 1);
        assert!(!budget.take(&map, 3, 7, false) && !budget.take(&map, 3, 7, true) && used() == 1);
        assert!(budget.take(&map, 3, 6, true) && used() == 4);
        let state = EphemeralState { used: 4 * BLOCK, limit: Some(4 * BLOCK), refused: 1 };
        assert_eq!(budget.state(), state);
    }
}
