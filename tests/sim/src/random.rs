//! A deterministic random generator: a seed draws the same schedule on each machine.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Derives an independent generator.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// A number below `bound`, which must not be 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// A number from `low` to `high` inclusive.
    pub(super) fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True with odds per mille.
    pub(super) fn chance(&mut self, odds: u16) -> bool {
        odds > 0 && self.next() % 1000 < u64::from(odds)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// An element of `all`, which must not be empty.
    pub(super) fn pick(&mut self, all: &[usize]) -> usize {
        all[self.below(all.len())]
    }

    /// An index into `weights`, drawn in proportion to the weights; `None` if all are 0.
    pub(super) fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let total: u32 = weights.iter().sum();
        if total == 0 {
            return None;
        }
        let mut at = u32::try_from(self.next() % u64::from(total)).unwrap();
        weights.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        })
    }
}
