//! Samples of a disk's content at the start of its recording, in the log's first sector: they tell
//! the base of the recording from another image.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::page::{LentPages, PAGE};
use crate::{Backend, ByteOffset, EngineSetup, OpenError, Operation, Request};

/// Bytes of a sample.
pub const BASE_SAMPLE: usize = PAGE;
/// Most samples of a disk.
const SAMPLES: usize = 64;
/// Samples at the start, from 1 MiB on, where most disks have their first partition, and at the
/// end, each. The others are spread evenly.
const CLUSTER: u64 = 8;
const SPREAD: u64 = 40;
const PARTITION_START: u64 = (1 << 20) / BASE_SAMPLE as u64;
const _: () = assert!(3 * CLUSTER + SPREAD == SAMPLES as u64);

const MAGIC: [u8; 8] = *b"BLKHDBAS";
/// Where they are in the first sector.
const PLACE: usize = 64;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseSamples {
    /// Bytes of the disk.
    pub size: u64,
    /// A bit for each sample that could be read.
    read: u64,
    checksums: [u32; SAMPLES],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawBase {
    magic: [u8; 8],
    size: U64,
    read: U64,
    checksums: [U32; SAMPLES],
    checksum: U32,
}

/// Bytes of the first sector.
const SECTOR: usize = 512;
const _: () = assert!(PLACE + size_of::<RawBase>() <= SECTOR);

/// The checksum of the samples is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DamagedSamples;

impl RawBase {
    fn sum(&self) -> u32 {
        let checked = size_of::<Self>() - size_of::<U32>();
        crc32fast::hash(self.as_bytes().get(..checked).unwrap_or_default())
    }
}

impl BaseSamples {
    /// The samples that were read: the first byte of each, and its checksum.
    pub fn read(&self) -> impl Iterator<Item = (u64, u32)> {
        let (read, checksums) = (self.read, self.checksums);
        let numbered = places(self.size).into_iter().zip(checksums).enumerate();
        numbered.filter(move |(index, _)| read >> index & 1 == 1).map(|(_, sample)| sample)
    }

    /// The checksum of a sample: CRC-32.
    #[must_use]
    pub fn checksum(bytes: &[u8]) -> u32 {
        crc32fast::hash(bytes)
    }

    /// Reads the samples of a disk that no guest uses yet. Blocks for as long as the disk takes. A
    /// sample that cannot be read is left out.
    ///
    /// # Errors
    ///
    /// The disk gives no engine, or its engine fails.
    pub fn take(disk: &dyn Backend) -> Result<Self, OpenError> {
        let size = disk.geometry().capacity;
        let mut samples = Self { size, read: 0, checksums: [0; SAMPLES] };
        let pages = read_pages(disk, &places(size))?;
        for ((index, checksum), page) in samples.checksums.iter_mut().enumerate().zip(pages) {
            if let Some(page) = page {
                samples.read |= 1 << index;
                *checksum = page;
            }
        }
        Ok(samples)
    }

    /// Writes them to the first sector of a log.
    pub(super) fn encode(&self, sector: &mut [u8; SECTOR]) {
        let mut raw = RawBase {
            magic: MAGIC,
            size: U64::new(self.size),
            read: U64::new(self.read),
            checksums: self.checksums.map(U32::new),
            checksum: U32::ZERO,
        };
        raw.checksum = U32::new(raw.sum());
        let _ = raw.write_to_prefix(sector.get_mut(PLACE..).unwrap_or_default());
    }

    /// Those of the first sector of a log; `None` if it has none.
    pub(super) fn decode(sector: &[u8]) -> Result<Option<Self>, DamagedSamples> {
        let place = sector.get(PLACE..).unwrap_or_default();
        let Ok((raw, _)) = RawBase::read_from_prefix(place) else { return Ok(None) };
        if raw.magic != MAGIC {
            return Ok(None);
        }
        if raw.checksum.get() != raw.sum() {
            return Err(DamagedSamples);
        }
        let checksums = raw.checksums.map(U32::get);
        Ok(Some(Self { size: raw.size.get(), read: raw.read.get(), checksums }))
    }
}

/// The first bytes of the samples of a disk, ascending.
fn places(size: u64) -> Vec<u64> {
    let blocks = size / BASE_SAMPLE as u64;
    let spread = (0..SPREAD).map(|index| blocks / SPREAD * index);
    let partition = PARTITION_START..PARTITION_START + CLUSTER;
    let end = blocks.saturating_sub(CLUSTER)..blocks;
    let mut places: Vec<_> = (0..CLUSTER).chain(partition).chain(spread).chain(end).collect();
    places.retain(|block| *block < blocks);
    places.sort_unstable();
    places.dedup();
    places.iter().map(|block| block * BASE_SAMPLE as u64).collect()
}

/// The checksum of the page at each place; `None` of one that cannot be read.
fn read_pages(disk: &dyn Backend, places: &[u64]) -> Result<Vec<Option<u32>>, OpenError> {
    let refused =
        |source| OpenError::Host { path: "the disk to record".into(), what: "read it", source };
    let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let kick = kick.map_err(|errno| refused(errno.into()))?;
    let depth = u16::try_from(SAMPLES).unwrap_or(u16::MAX);
    let mut engine = disk.engine(&EngineSetup { depth, memory: &[], kick: kick.as_fd() })?;
    let mut pages: Vec<_> = places.iter().map(|_| LentPages::zeroed(BASE_SAMPLE)).collect();
    for ((tag, place), page) in (0..).zip(places).zip(&mut pages) {
        let op = Operation::Read { at: ByteOffset(*place) };
        let mut segments: Vec<_> = page.lend(tag, 0, BASE_SAMPLE).into_iter().collect();
        engine.push(Request { tag, op, segments: &mut segments });
    }
    let mut sums = vec![None; places.len()];
    let (mut left, mut completed) = (places.len(), Vec::new());
    while left > 0 {
        engine.wait().map_err(refused)?;
        engine.reap(&mut completed);
        for done in completed.drain(..) {
            left -= 1;
            let index = usize::from(done.tag);
            let Some((page, sum)) = pages.get_mut(index).zip(sums.get_mut(index)) else { continue };
            page.take_back(&done);
            *sum = done
                .result
                .is_ok()
                .then(|| BaseSamples::checksum(page.bytes().unwrap_or_default()));
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheMode, Geometry, MemoryDisk};

    fn disk(capacity: u64) -> MemoryDisk {
        let geometry = Geometry {
            capacity,
            logical_block: 512,
            physical_block: 512,
            optimal_io: 0,
            discard: None,
        };
        MemoryDisk::new(geometry, CacheMode::WriteBack, false)
    }

    #[test]
    fn samples_are_within_the_disk_and_have_its_start_and_end() {
        for size in [0, 512, 4096, 3 * 4096 + 512, 1 << 20, (1 << 30) + 512, 1 << 60] {
            let places = places(size);
            assert!(places.len() <= SAMPLES && places.is_sorted(), "{size}");
            assert!(places.iter().all(|place| place + 4096 <= size));
            if size >= 4096 {
                assert_eq!(places[0], 0);
                assert_eq!(*places.last().unwrap(), size / 4096 * 4096 - 4096);
            }
        }
        assert_eq!(places(1 << 30).len(), SAMPLES - 1, "the first is among the spread ones, too");
        assert!(places(1 << 30).contains(&(1 << 20)));
    }

    #[test]
    fn samples_are_the_checksums_of_the_disk() {
        let disk = disk(1 << 23);
        disk.content()[4096..8192].fill(7);
        let samples = BaseSamples::take(&disk).unwrap();
        let read: Vec<_> = samples.read().collect();
        assert_eq!(read.len(), places(1 << 23).len());
        assert_eq!(read[0], (0, crc32fast::hash(&[0; 4096])));
        assert_eq!(read[1], (4096, crc32fast::hash(&[7; 4096])));
        let mut sector = [0; SECTOR];
        samples.encode(&mut sector);
        assert_eq!(BaseSamples::decode(&sector), Ok(Some(samples)));
        let unread = BaseSamples { read: samples.read & !2, ..samples };
        assert!(unread.read().all(|(place, _)| place != 4096));
        for byte in PLACE + 8..PLACE + size_of::<RawBase>() {
            let mut damaged = sector;
            damaged[byte] ^= 1;
            assert_eq!(BaseSamples::decode(&damaged), Err(DamagedSamples), "{byte}");
        }
        assert_eq!(BaseSamples::decode(&[0; SECTOR]), Ok(None));
        assert_eq!(BaseSamples::decode(&[]), Ok(None));
    }
}
