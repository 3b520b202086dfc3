//! The soft limit on a disk's backing store: warns the guest while there is still space. Control
//! plane only.

use std::sync::atomic::{AtomicBool, Ordering};

use super::BackingSpace;

/// The soft limit of one disk.
#[derive(Debug)]
pub(crate) struct SoftLimit {
    percent: u8,
    reached: AtomicBool,
}

/// A soft limit and whether the store had reached it when last measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftLimitState {
    /// The limit, in percent of the store's space.
    pub percent: u8,
    /// At least that much was in use.
    pub reached: bool,
}

/// How the used space has crossed the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// It rose to the limit or above.
    Reached,
    /// It fell below the limit.
    Receded,
}

impl SoftLimit {
    pub(crate) fn new(percent: u8) -> Self {
        Self { percent, reached: AtomicBool::new(false) }
    }

    /// Takes the state of another disk on the same store over.
    pub(crate) fn adopt(&self, from: &Self) {
        self.reached.store(from.reached.load(Ordering::Acquire), Ordering::Release);
    }

    pub(crate) fn state(&self) -> SoftLimitState {
        SoftLimitState { percent: self.percent, reached: self.reached.load(Ordering::Acquire) }
    }

    /// Records a measurement; returns whether it crossed the limit since the last one.
    pub(crate) fn update(&self, space: BackingSpace) -> Option<Crossing> {
        let reached = space.used >= space.part(self.percent);
        if self.reached.swap(reached, Ordering::AcqRel) == reached {
            return None;
        }
        Some(if reached { Crossing::Reached } else { Crossing::Receded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crossing_is_reported_once() {
        let limit = SoftLimit::new(80);
        let update = |used| limit.update(BackingSpace { used, available: 1000 - used });
        assert_eq!(update(799), None);
        assert_eq!(update(800), Some(Crossing::Reached));
        assert_eq!(update(950), None);
        assert_eq!(update(799), Some(Crossing::Receded));
        assert_eq!(update(1000), Some(Crossing::Reached));
        assert_eq!(limit.state(), SoftLimitState { percent: 80, reached: true });
    }

    #[test]
    fn percentages_of_the_largest_store_do_not_overflow() {
        let huge = BackingSpace { used: u64::MAX / 2, available: u64::MAX / 2 };
        assert_eq!(SoftLimit::new(50).update(huge), Some(Crossing::Reached));
        assert_eq!(SoftLimit::new(51).update(huge), None);
    }
}
