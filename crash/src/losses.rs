//! The losses of a power cut: some of its open writes, whole or in part.

use std::collections::BTreeMap;

/// The part of a write that is lost. Discards and zeroings are writes here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// All of it.
    Whole,
    /// Ranges of its sectors of 512 bytes, each with its first sector, counted from the start of
    /// the write, and its length. They are sorted and neither overlap nor touch.
    Sectors(Vec<(u64, u64)>),
}

impl Loss {
    /// Whether sector `sector` of the write is lost, counted from the start of the write.
    #[must_use]
    pub fn covers(&self, sector: u64) -> bool {
        match self {
            Self::Whole => true,
            Self::Sectors(ranges) => {
                let after = ranges.partition_point(|(first, _)| *first <= sector);
                let range = after.checked_sub(1).and_then(|at| ranges.get(at));
                range.is_some_and(|(first, count)| sector - first < *count)
            }
        }
    }

    /// Both losses together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (Self::Sectors(mine), Self::Sectors(others)) = (self, other) else {
            return Self::Whole;
        };
        let mut ranges: Vec<_> = mine.iter().chain(others).copied().collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, count) in ranges.into_iter().filter(|(_, count)| *count > 0) {
            match merged.last_mut() {
                Some(last) if first <= last.0.saturating_add(last.1) => {
                    let end = first.saturating_add(count).max(last.0.saturating_add(last.1));
                    last.1 = end - last.0;
                }
                _ => merged.push((first, count)),
            }
        }
        Self::Sectors(merged)
    }
}

/// The writes that a power cut takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Losses {
    /// All that are open.
    All,
    /// These, by their numbers in the order of completion.
    These(BTreeMap<u64, Loss>),
}

impl Losses {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::These(BTreeMap::new())
    }

    /// These and one more.
    #[must_use]
    pub fn with(&self, write: u64, loss: &Loss) -> Self {
        let Self::These(these) = self else { return Self::All };
        let mut these = these.clone();
        let both = these.get(&write).map_or_else(|| loss.clone(), |had| had.and(loss));
        these.insert(write, both);
        Self::These(these)
    }

    /// Whether sector `sector` of write `write` is lost, counted from the start of the write.
    #[must_use]
    pub fn covers(&self, write: u64, sector: u64) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.get(&write).is_some_and(|loss| loss.covers(sector)),
        }
    }

    /// Number of writes that are lost in whole or in part; `None` for all.
    #[must_use]
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::These(these) => Some(these.len()),
        }
    }

    /// Whether nothing is lost.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}
