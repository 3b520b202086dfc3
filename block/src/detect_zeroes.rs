//! What becomes of writes that hold nothing but zeroes.

use std::fmt;
use std::str::FromStr;

/// Whether a write of zeroes is told from others. Telling costs a look at the data of each write, which mostly ends with
/// its first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// All data is written as it comes.
    #[default]
    Off,
    /// Zeroes become a zeroing that keeps the space.
    On,
    /// Zeroes become a zeroing that gives the space back.
    Unmap,
}

impl DetectZeroes {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Off, Self::On, Self::Unmap];

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

impl fmt::Display for DetectZeroes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zeroes are detected \"off\", \"on\" or \"unmap\"")]
pub struct UnknownDetectZeroes;

impl FromStr for DetectZeroes {
    type Err = UnknownDetectZeroes;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|way| way.name() == name).ok_or(UnknownDetectZeroes)
    }
}
