//! The host's units of deallocation, laid over the disk.

use crate::{ByteRange, DiscardLimits};

/// Granules of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granules {
    granularity: u64,
    /// Start of the first granule, below the granularity.
    offset: u64,
}

impl Granules {
    pub(crate) fn new(limits: DiscardLimits) -> Self {
        let granularity = u64::from(limits.granularity.max(1));
        Self { granularity, offset: u64::from(limits.alignment) % granularity }
    }

    /// The whole granules within the bytes from `start` to `end`, as a start and an end; these are
    /// equal if there is no whole granule.
    pub(crate) fn within(self, start: u64, end: u64) -> (u64, u64) {
        let Self { granularity, offset } = self;
        // The part before the offset is no whole granule.
        let beyond = |at: u64| at.saturating_sub(offset);
        let first = beyond(start).next_multiple_of(granularity).saturating_add(offset);
        let first = if start <= offset { offset } else { first };
        let last = if end < offset { 0 } else { beyond(end) / granularity * granularity + offset };
        if first < last { (first, last) } else { (start, start) }
    }

    /// Bytes of the whole granules within a range.
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
        let aligned = granules(4096, 0);
        assert_eq!(aligned.within(0, 8192), (0, 8192));
        assert_eq!(aligned.within(512, 8192), (4096, 8192));
        assert_eq!(aligned.within(512, 8191), (512, 512));
        let shifted = granules(4096, 512);
        assert_eq!(shifted.within(0, 8192), (512, 4608));
        assert_eq!(shifted.within(512, 4608), (512, 4608));
        assert_eq!(shifted.within(513, 8704), (4608, 8704));
        assert_eq!(shifted.within(0, 100), (0, 0));
    }

    proptest! {
        #[test]
        fn the_granules_within_a_range_are_whole_and_complete(
            start in 0_u64..1 << 17,
            len in 0_u64..1 << 17,
            log in 9_u32..16,
            alignment in 0_u32..1 << 16,
        ) {
            let unit = granules(1 << log, alignment);
            let end = start + len;
            let (first, last) = unit.within(start, end);
            prop_assert!(start <= first && first <= last && last <= end);
            let distance = |at: u64| at + unit.granularity - unit.offset;
            let is_start = |at: u64| distance(at).is_multiple_of(unit.granularity);
            if first < last {
                prop_assert!(is_start(first) && is_start(last));
            }
            let whole = |at: &u64| is_start(*at) && at + unit.granularity <= end;
            let count = (start..end).filter(whole).count();
            prop_assert_eq!(count as u64 * unit.granularity, last - first);
        }
    }
}
