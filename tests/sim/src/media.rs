//! The medium: what is stable in each sector, and the volatile versions above it.
//!
//! A version becomes visible at once and stable by write-back, which takes the versions of one
//! sector in order and the sectors in any. A power cut keeps, for each sector on its own, the
//! stable version or any later one. A lost version (its write-back failed) stays visible until it
//! is evicted.

use super::content::{Bytes, Value};
use super::random::Random;

/// A version's number: later ones are greater, across sectors.
pub(super) type Version = u64;

#[derive(Debug)]
struct Sector {
    stable: Bytes,
    dirty: Vec<(Version, Bytes)>,
    /// Lost by a failed write-back, and still cached.
    lost: Option<Bytes>,
    /// The version that freed it, if no flush makes that stable.
    late: Option<Version>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Media {
    sectors: Vec<Sector>,
    next: Version,
}

impl Media {
    /// A medium whose sectors hold [`Value::Written`] number 0.
    pub(super) fn new(sectors: usize) -> Self {
        let sector = |at| Sector {
            stable: Value::Written(0).bytes(at),
            dirty: Vec::new(),
            lost: None,
            late: None,
        };
        Self { sectors: (0..sectors).map(sector).collect(), next: 1 }
    }

    /// The number of the next version.
    pub(super) fn next_version(&self) -> Version {
        self.next
    }

    pub(super) fn visible(&self, sector: usize) -> &Bytes {
        let sector = &self.sectors[sector];
        let lost = sector.lost.as_ref().unwrap_or(&sector.stable);
        sector.dirty.last().map_or(lost, |(_, bytes)| bytes)
    }

    /// Puts a new version into a sector, `bytes` from `offset` on.
    pub(super) fn write(&mut self, sector: usize, offset: usize, bytes: &[u8]) {
        let mut whole = *self.visible(sector);
        whole[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.sectors[sector].dirty.push((self.next, whole));
        self.sectors[sector].late = None;
        self.next += 1;
    }

    /// Frees a sector as a ZFS volume does: it reads zero from then on, but a flush makes only the
    /// freeing of what was free before stable (ADR 12).
    pub(super) fn free(&mut self, sector: usize) {
        let zeroes = [0; 512];
        let was_free = *self.visible(sector) == zeroes;
        let version = self.next;
        self.write(sector, 0, &zeroes);
        self.sectors[sector].late = (!was_free).then_some(version);
    }

    /// Makes the versions of a sector before `end` stable.
    pub(super) fn write_back(&mut self, sector: usize, end: Version) {
        let sector = &mut self.sectors[sector];
        let count = sector.dirty.partition_point(|(version, _)| *version < end);
        if let Some((_, bytes)) = sector.dirty.drain(..count).next_back() {
            sector.stable = bytes;
            sector.lost = None;
            sector.late = sector.late.filter(|late| *late >= end);
        }
    }

    /// Makes the versions of all sectors before `end` stable, as a flush does.
    pub(super) fn write_back_all(&mut self, end: Version) {
        for sector in 0..self.sectors.len() {
            let end = self.sectors[sector].late.map_or(end, |late| late.min(end));
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
            (sector.lost, sector.late) = (Some(bytes), None);
        }
    }

    /// Forgets a lost version.
    pub(super) fn evict(&mut self, sector: usize) {
        self.sectors[sector].lost = None;
    }

    /// Cuts the power. What remains is stable and visible.
    pub(super) fn cut(&mut self, random: &mut Random) {
        for at in 0..self.sectors.len() {
            if random.coin() {
                self.write_back_some(at, random);
            }
            let sector = &mut self.sectors[at];
            sector.dirty.clear();
            (sector.lost, sector.late) = (None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(media: &Media) -> Option<Value> {
        Value::of(media.visible(0), 0)
    }

    fn written(number: u32) -> (Media, Random) {
        let mut media = Media::new(1);
        for number in 1..=number {
            media.write(0, 0, &Value::Written(number).bytes(0));
        }
        (media, Random::new(1))
    }

    #[test]
    fn a_cut_keeps_any_version_from_the_stable_one_on() {
        let mut seen = [false; 4];
        for seed in 0..100 {
            let (mut media, _) = written(3);
            media.write_back(0, 2);
            media.cut(&mut Random::new(seed));
            let Some(Value::Written(number)) = value(&media) else { panic!("garbage") };
            seen[number as usize] = true;
        }
        assert_eq!(seen, [false, true, true, true]);
    }

    #[test]
    fn a_flush_reaches_what_was_freed_twice() {
        for times in [1, 2] {
            let mut seen = Vec::new();
            for seed in 0..100 {
                let (mut media, _) = written(1);
                (0..times).for_each(|_| media.free(0));
                media.write_back_all(Version::MAX);
                assert_eq!(value(&media), Some(Value::Zero));
                media.cut(&mut Random::new(seed));
                seen.push(value(&media));
            }
            assert!(seen.contains(&Some(Value::Zero)));
            assert_eq!(seen.contains(&Some(Value::Written(1))), times == 1, "freed {times} times");
        }
    }

    #[test]
    fn a_lost_version_is_seen_until_it_is_evicted() {
        let (mut media, mut random) = written(1);
        media.lose(0);
        media.write_back_all(Version::MAX);
        assert_eq!(value(&media), Some(Value::Written(1)));
        media.evict(0);
        assert_eq!(value(&media), Some(Value::Written(0)));
        media.cut(&mut random);
        assert_eq!(value(&media), Some(Value::Written(0)));
    }
}
