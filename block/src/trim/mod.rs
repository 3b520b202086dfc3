//! How what guests discard reaches the host: small pieces gathered, large ones cut, none of it in the way of transfers.
//!
//! Pure: the engines' requests ask here what to do, and say what became of it.

mod account;
mod activity;
mod gather;
mod pace;
mod rest;
mod turns;

pub(crate) use self::account::Account;
pub use self::account::DiscardStats;
pub(crate) use self::activity::Activity;
use self::gather::Gather;
pub(crate) use self::gather::Run;
use self::pace::Pace;
pub(crate) use self::turns::Turns;

use crate::{ByteRange, DiscardLimits};

/// The host's unit of freeing space, laid over the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granules {
    granularity: u64,
    /// Where the first granule starts, below the granularity.
    offset: u64,
}

impl Granules {
    pub(crate) fn new(limits: DiscardLimits) -> Self {
        let granularity = u64::from(limits.granularity.max(1));
        Self { granularity, offset: u64::from(limits.alignment) % granularity }
    }

    /// The granules that lie whole within the bytes from `start` to `end`: again a start and an end, equal where
    /// there is none.
    pub(crate) fn within(self, start: u64, end: u64) -> (u64, u64) {
        let Self { granularity, offset } = self;
        // Before the offset there is a part of a granule.
        let behind = |at: u64| at.saturating_sub(offset);
        let first = behind(start).next_multiple_of(granularity).saturating_add(offset);
        let first = if start <= offset { offset } else { first };
        let last = if end < offset { 0 } else { behind(end) / granularity * granularity + offset };
        if first < last { (first, last) } else { (start, start) }
    }

    /// How many bytes of whole granules a range has.
    pub(crate) fn bytes_within(self, range: ByteRange) -> u64 {
        let (start, end) = self.within(range.start.0, range.start.0 + range.len);
        end - start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn granules(granularity: u32, alignment: u32) -> Granules {
        Granules::new(DiscardLimits { granularity, alignment, reads_zero: true })
    }

    #[test]
    fn whole_granules_are_found_within_a_range() {
        let plain = granules(4096, 0);
        assert_eq!(plain.within(0, 8192), (0, 8192));
        assert_eq!(plain.within(512, 8192), (4096, 8192));
        assert_eq!(plain.within(512, 8191), (512, 512));
        let shifted = granules(4096, 512);
        assert_eq!(shifted.within(0, 8192), (512, 4608));
        assert_eq!(shifted.within(512, 4608), (512, 4608));
        assert_eq!(shifted.within(513, 8704), (4608, 8704));
        assert_eq!(shifted.within(0, 100), (0, 0));
    }

    proptest! {
        #[test]
        fn granules_within_a_range_are_whole_and_all_there(
            start in 0_u64..1 << 17, len in 0_u64..1 << 17, log in 9_u32..16, alignment in 0_u32..1 << 16,
        ) {
            let unit = granules(1 << log, alignment);
            let end = start + len;
            let (first, last) = unit.within(start, end);
            prop_assert!(start <= first && first <= last && last <= end);
            let whole = |at: u64| (at + unit.granularity - unit.offset).is_multiple_of(unit.granularity);
            if first < last {
                prop_assert!(whole(first) && whole(last));
            }
            let count = (start..end).filter(|at| whole(*at) && at + unit.granularity <= end).count();
            prop_assert_eq!(count as u64 * unit.granularity, last - first);
        }
    }
}
