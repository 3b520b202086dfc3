//! A mark on the space of what stores a disk: a guest is told when it is passed, while there is still space. Control plane only.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::BackingSpace;

/// The mark of one disk.
#[derive(Debug)]
pub(crate) struct SoftLimit {
    percent: u8,
    reached: AtomicBool,
}

/// A disk's mark, and on which side of it the store was when last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftLimitState {
    /// The mark, in percent of the store's space.
    pub percent: u8,
    /// Whether so much was used.
    pub reached: bool,
}

/// The mark was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// So much is used now.
    Reached,
    /// Less is used again, so that the next time is told anew.
    Receded,
}

impl SoftLimit {
    pub(crate) fn new(percent: u8) -> Self {
        Self { percent, reached: AtomicBool::new(false) }
    }

    pub(crate) fn state(&self) -> SoftLimitState {
        SoftLimitState { percent: self.percent, reached: self.reached.load(Ordering::Acquire) }
    }

    /// Takes note of the space there is, and says whether it is on the other side of the mark than before.
    pub(crate) fn look(&self, space: BackingSpace) -> Option<Crossing> {
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
    fn each_crossing_is_told_once_and_falling_below_arms_it_again() {
        let limit = SoftLimit::new(80);
        let look = |used| limit.look(BackingSpace { used, available: 1000 - used });
        assert_eq!(look(799), None);
        assert_eq!(look(800), Some(Crossing::Reached));
        assert_eq!(look(950), None);
        assert_eq!(look(799), Some(Crossing::Receded));
        assert_eq!(look(1000), Some(Crossing::Reached));
        assert_eq!(limit.state(), SoftLimitState { percent: 80, reached: true });
    }

    #[test]
    fn a_store_of_any_size_is_measured_truly() {
        let huge = BackingSpace { used: u64::MAX / 2, available: u64::MAX / 2 };
        assert_eq!(SoftLimit::new(50).look(huge), Some(Crossing::Reached));
        assert_eq!(SoftLimit::new(51).look(huge), None);
    }
}
