//! The medium: the stable version of each sector and the volatile versions above it.
//!
//! A version is visible at once and becomes stable by write-back, in order within a sector and in
//! any order among sectors. A power cut keeps, for each sector independently, the stable version or
//! a later one. A lost version (its write-back failed) stays visible until it is evicted.

use std::ops::Range;

use super::content::{Bytes, Value};
use fixtures::Random;

/// Number of a version, increasing across all sectors.
pub(super) type Version = u64;

#[derive(Debug)]
struct Sector {
    stable: Bytes,
    dirty: Vec<(Version, Bytes)>,
    /// Version lost by a failed write-back and still cached.
    lost: Option<Bytes>,
    /// The version of a free that the next flush does not make stable.
    unflushed_free: Option<Version>,
    /// It had [`Value::STALE`] at first.
    was_stale: bool,
}

/// All sectors of the disk.
#[derive(Debug)]
pub(super) struct Medium {
    sectors: Vec<Sector>,
    next: Version,
}

impl Medium {
    /// A medium of sectors that hold [`Value::Written`] number `number`.
    pub(super) fn new(sectors: usize, number: u32) -> Self {
        Self::of((0..sectors).map(|at| Value::Written(number).bytes(at)))
    }

    /// A medium of sectors with this content.
    pub(super) fn of(content: impl IntoIterator<Item = Bytes>) -> Self {
        let sector = |stable| Sector {
            was_stale: Value::is_stale(&stable),
            stable,
            dirty: Vec::new(),
            lost: None,
            unflushed_free: None,
        };
        Self { sectors: content.into_iter().map(sector).collect(), next: 1 }
    }

    /// Number of sectors.
    pub(super) fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// Number of the next version.
    pub(super) fn next_version(&self) -> Version {
        self.next
    }

    pub(super) fn visible(&self, sector: usize) -> &Bytes {
        let sector = &self.sectors[sector];
        let lost = sector.lost.as_ref().unwrap_or(&sector.stable);
        sector.dirty.last().map_or(lost, |(_, bytes)| bytes)
    }

    /// Adds a version of a sector with `bytes` at `offset`.
    pub(super) fn write(&mut self, sector: usize, offset: usize, bytes: &[u8]) {
        let mut whole = *self.visible(sector);
        whole[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.sectors[sector].dirty.push((self.next, whole));
        self.sectors[sector].unflushed_free = None;
        self.next += 1;
    }

    /// Frees a sector as a ZFS volume does: it reads zero at once, but a flush makes the free
    /// stable only if the sector was zero before (ADR 12).
    pub(super) fn free(&mut self, sector: usize) {
        let zeroes = [0; 512];
        let was_free = *self.visible(sector) == zeroes;
        let version = self.next;
        self.write(sector, 0, &zeroes);
        self.sectors[sector].unflushed_free = (!was_free).then_some(version);
    }

    /// Makes the versions of a sector before `end` stable.
    pub(super) fn write_back(&mut self, sector: usize, end: Version) {
        let sector = &mut self.sectors[sector];
        let count = sector.dirty.partition_point(|(version, _)| *version < end);
        if let Some((_, bytes)) = sector.dirty.drain(..count).next_back() {
            sector.stable = bytes;
            sector.lost = None;
            sector.unflushed_free =
                sector.unflushed_free.filter(|unflushed_free| *unflushed_free >= end);
        }
    }

    /// Makes the versions of all sectors before `end` stable, as a flush does.
    pub(super) fn write_back_all(&mut self, end: Version) {
        self.write_back_file(0..self.sectors.len(), end);
    }

    /// The same, of the sectors of one file.
    pub(super) fn write_back_file(&mut self, sectors: Range<usize>, end: Version) {
        for sector in sectors {
            let end = self.sectors[sector]
                .unflushed_free
                .map_or(end, |unflushed_free| unflushed_free.min(end));
            self.write_back(sector, end);
        }
    }

    /// Makes some of a sector's versions stable.
    pub(super) fn write_back_some(&mut self, sector: usize, random: &mut Random) {
        let dirty = &self.sectors[sector].dirty;
        if let Some((version, _)) = dirty.get(random.below(dirty.len().max(1))) {
            self.write_back(sector, version + 1);
        }
    }

    /// The sectors with versions that are not stable.
    pub(super) fn dirty(&self) -> Vec<usize> {
        (0..self.sectors.len()).filter(|at| !self.sectors[*at].dirty.is_empty()).collect()
    }

    /// Drops a sector's dirty versions, as the kernel does when their write-back failed. The last
    /// stays visible.
    pub(super) fn lose(&mut self, sector: usize) {
        let sector = &mut self.sectors[sector];
        if let Some((_, bytes)) = sector.dirty.drain(..).next_back() {
            (sector.lost, sector.unflushed_free) = (Some(bytes), None);
        }
    }

    /// Evicts a lost version from the cache, unless the sector had data without meaning at first:
    /// after a lost write a layered disk may read that, but the oracle knows older values only.
    pub(super) fn evict(&mut self, sector: usize) {
        let sector = &mut self.sectors[sector];
        if !sector.was_stale {
            sector.lost = None;
        }
    }

    /// Makes some bits of a sector's next version stable, as of a write that a power cut has torn.
    pub(super) fn tear(&mut self, sector: usize, random: &mut Random) {
        self.write_back_some(sector, random);
        let Sector { stable, dirty, .. } = &mut self.sectors[sector];
        if let Some((_, next)) = dirty.first() {
            for (byte, next) in stable.iter_mut().zip(next) {
                *byte ^= (*byte ^ next) & random.below(256) as u8;
            }
        }
        dirty.clear();
    }

    /// Cuts the power: only stable versions remain.
    pub(super) fn cut_power(&mut self, random: &mut Random) {
        for at in 0..self.sectors.len() {
            if random.coin() {
                self.write_back_some(at, random);
            }
            let sector = &mut self.sectors[at];
            sector.dirty.clear();
            (sector.lost, sector.unflushed_free) = (None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(medium: &Medium) -> Option<Value> {
        Value::of(medium.visible(0), 0)
    }

    fn written(number: u32) -> (Medium, Random) {
        let mut medium = Medium::new(1, 0);
        for number in 1..=number {
            medium.write(0, 0, &Value::Written(number).bytes(0));
        }
        (medium, Random::new(1))
    }

    #[test]
    fn power_cut_keeps_stable_or_later_version() {
        let mut seen = [false; 4];
        for seed in 0..100 {
            let (mut medium, _) = written(3);
            medium.write_back(0, 2);
            medium.cut_power(&mut Random::new(seed));
            let Some(Value::Written(number)) = value(&medium) else { panic!("garbage") };
            seen[number as usize] = true;
        }
        assert_eq!(seen, [false, true, true, true]);
    }

    #[test]
    fn flush_makes_second_free_stable() {
        for times in [1, 2] {
            let mut seen = Vec::new();
            for seed in 0..100 {
                let (mut medium, _) = written(1);
                (0..times).for_each(|_| medium.free(0));
                medium.write_back_all(Version::MAX);
                assert_eq!(value(&medium), Some(Value::Zero));
                medium.cut_power(&mut Random::new(seed));
                seen.push(value(&medium));
            }
            assert!(seen.contains(&Some(Value::Zero)));
            assert_eq!(seen.contains(&Some(Value::Written(1))), times == 1, "freed {times} times");
        }
    }

    #[test]
    fn lost_version_is_visible_until_evicted() {
        let (mut medium, mut random) = written(1);
        medium.lose(0);
        medium.write_back_all(Version::MAX);
        assert_eq!(value(&medium), Some(Value::Written(1)));
        medium.evict(0);
        assert_eq!(value(&medium), Some(Value::Written(0)));
        medium.cut_power(&mut random);
        assert_eq!(value(&medium), Some(Value::Written(0)));
    }
}
