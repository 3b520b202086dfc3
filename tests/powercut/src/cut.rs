//! A power cut: which of the unflushed writes reached the disk, by a seed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use fixtures::Random;

use super::store::{Sector, UnflushedWrite, write_sectors};

/// A disk without power: its file, and the writes that were not flushed.
#[derive(Debug)]
pub struct CutDisk {
    /// In the order of completion.
    pub(crate) unflushed: Vec<UnflushedWrite>,
}

/// Counts of the unflushed writes by their fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// None of its sectors reached the disk.
    pub lost: u64,
    /// All of them did.
    pub kept: u64,
    /// Some of them did.
    pub torn: u64,
}

impl Fates {
    /// How many writes were not flushed.
    #[must_use]
    pub fn unflushed(&self) -> u64 {
        self.lost + self.kept + self.torn
    }
}

/// Odds of a fate per mille: lost and torn; the rest is kept.
const PROFILES: [(u16, u16); 5] = [(1000, 0), (500, 100), (100, 800), (100, 50), (850, 100)];

impl CutDisk {
    /// Decides by `seed` what reached the disk. Writes of the same sector reach it in the order of
    /// their completion.
    #[must_use]
    pub(crate) fn decide(&self, seed: u64) -> (Fates, BTreeMap<u64, Sector>) {
        let mut random = Random::new(seed);
        let (lost, torn) = PROFILES.get(random.below(PROFILES.len())).copied().unwrap_or_default();
        let mut fates = Fates::default();
        let mut reached = BTreeMap::new();
        for write in self.unflushed.iter().filter(|write| !write.is_empty()) {
            if random.chance(lost) {
                fates.lost += 1;
            } else if random.chance(torn) && write.len() > 1 {
                fates.torn += 1;
                reached.extend(tear(write, &mut random));
            } else {
                fates.kept += 1;
                reached.extend(write.iter().copied());
            }
        }
        (fates, reached)
    }

    /// Copies the file `from` of the disk to `to` and adds what reached it by `seed`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn make_state(&self, seed: u64, from: &Path, to: &Path) -> io::Result<Fates> {
        copy_sparse(from, to)?;
        let (fates, reached) = self.decide(seed);
        let sectors: Vec<(u64, Sector)> = reached.into_iter().collect();
        write_sectors(&File::options().write(true).open(to)?, sectors.iter())?;
        Ok(fates)
    }
}

/// A part of a write, neither none nor all: the first sectors, or any.
fn tear(write: &UnflushedWrite, random: &mut Random) -> Vec<(u64, Sector)> {
    let some = 1 + random.below(write.len() - 1);
    if random.coin() {
        return write.iter().take(some).copied().collect();
    }
    let mut part: Vec<_> = write.iter().copied().filter(|_| random.coin()).collect();
    if part.is_empty() || part.len() == write.len() {
        part = write.iter().skip(some).copied().collect();
    }
    part
}

/// Copies a file and leaves its holes.
///
/// # Errors
///
/// cp(1) failed.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_file(to)?;
    }
    let status = Command::new("cp").arg("--sparse=always").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("cp failed")) }
}
