//! Used and available space of a disk's backing store.

/// Space of a backing store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingSpace {
    /// In use, by anyone.
    pub used: u64,
    /// Available to this process.
    pub available: u64,
}

impl BackingSpace {
    /// Used and available space together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.used.saturating_add(self.available)
    }

    /// `percent` of the total, in bytes, rounded up.
    #[must_use]
    pub fn part(&self, percent: u8) -> u64 {
        let part = (u128::from(self.total()) * u128::from(percent)).div_ceil(100);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}
