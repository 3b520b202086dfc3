//! A disk with a volatile write cache: what was not flushed lives in memory only.
//!
//! A write is a list of sectors in the order of completion. A flush puts all of them into the file,
//! which is what survives. Reads see the cache. A [`Lie`] makes the disk break one of its promises.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of a sector, which a power cut does not divide.
pub const SECTOR: usize = 512;
/// Bytes of unflushed data; more are written back without a flush, as by a real disk.
const MOST_UNFLUSHED: usize = 256 << 20;
/// Longest zeroing that the cache holds; longer ones are durable at once.
const MOST_ZEROED: usize = 1 << 20;
/// Writes that [`Lie::ReportEarly`] reports before it makes them.
const EARLY: usize = 16;

/// A sector.
pub(crate) type Sector = [u8; SECTOR];

/// A promise that the disk breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A flush is answered and does nothing.
    DropFlush,
    /// A write with FUA stays in the cache.
    IgnoreFua,
    /// A write is answered some writes before it is made; a flush does not cover it meanwhile.
    ReportEarly,
    /// The flush after a write to the map of the guest's layer does not cover it, as if it had not
    /// been sent. The next one does.
    DropMapFlush,
}

/// Requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Writes and zeroings.
    pub writes: u64,
    /// Writes and zeroings with FUA.
    pub fua: u64,
    /// Flushes.
    pub flushes: u64,
}

/// One write, in sectors. Those that a later durable write replaced are not there any more.
pub(crate) type UnflushedWrite = Vec<(u64, Sector)>;

/// The disk.
#[derive(Debug)]
pub struct Store {
    file: File,
    size: u64,
    lie: Option<Lie>,
    /// The newest data of each sector that differs from the file.
    newest: HashMap<u64, Sector>,
    unflushed: Vec<UnflushedWrite>,
    unflushed_bytes: usize,
    /// Reported, not made.
    early: VecDeque<UnflushedWrite>,
    /// The sectors of the map of the guest's layer.
    map: Range<u64>,
    /// How many of the unflushed writes, which are the first, are of the map and before a flush.
    late: usize,
    requests: Requests,
}

impl Store {
    /// A disk over `file`, as long as it.
    ///
    /// # Errors
    ///
    /// The length cannot be found out, or is no multiple of a sector (`EINVAL`).
    pub fn new(file: File, lie: Option<Lie>) -> io::Result<Self> {
        let size = file.metadata()?.len();
        if !size.is_multiple_of(SECTOR as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            file,
            size,
            lie,
            newest: HashMap::new(),
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            early: VecDeque::new(),
            map: 0..0,
            late: 0,
            requests: Requests::default(),
        })
    }

    /// Tells where the map of the guest's layer is, for [`Lie::DropMapFlush`].
    #[must_use]
    pub fn with_map(self, sectors: Range<u64>) -> Self {
        Self { map: sectors, ..self }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Requests since the start.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.requests
    }

    /// The first sector of a range, which must be whole sectors within the disk.
    fn first_sector(&self, offset: u64, len: u64) -> io::Result<u64> {
        let sector = SECTOR as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        if end.is_none() || !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(offset / sector)
    }

    /// Fills `buffer` with the newest data from byte `offset`.
    ///
    /// # Errors
    ///
    /// The range is not of whole sectors within the disk (`InvalidInput`), or the host's error.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let first = self.first_sector(offset, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, offset)?;
        for (sector, place) in (first..).zip(buffer.as_chunks_mut::<SECTOR>().0) {
            if let Some(newest) = self.newest.get(&sector) {
                *place = *newest;
            }
        }
        Ok(())
    }

    /// Writes `data` at byte `offset`; with `fua` it is durable afterwards.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let first = self.first_sector(offset, data.len() as u64)?;
        self.requests.writes += 1;
        self.requests.fua += u64::from(fua);
        let write: UnflushedWrite =
            (first..).zip(data.as_chunks::<SECTOR>().0.iter().copied()).collect();
        self.newest.extend(write.iter().copied());
        if self.lie == Some(Lie::ReportEarly) {
            self.early.push_back(write);
            if self.early.len() > EARLY
                && let Some(made) = self.early.pop_front()
            {
                self.cache(made)?;
            }
            return Ok(());
        }
        if fua && self.lie != Some(Lie::IgnoreFua) {
            return self.make_durable(first, &write);
        }
        self.cache(write)
    }

    /// Zeroes `len` bytes from byte `offset`; with `fua` they are durable afterwards. Long ranges
    /// always are.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    pub fn zero(&mut self, offset: u64, len: u64, fua: bool) -> io::Result<()> {
        let first = self.first_sector(offset, len)?;
        match usize::try_from(len) {
            Ok(0) => Ok(()),
            Ok(len) if len <= MOST_ZEROED => self.write(offset, &vec![0; len], fua),
            _ => {
                self.requests.writes += 1;
                let range = first..first + len / SECTOR as u64;
                self.newest.retain(|sector, _| !range.contains(sector));
                self.forget(&range);
                for early in &mut self.early {
                    early.retain(|(sector, _)| !range.contains(sector));
                }
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&self.file, punch, offset, len)?)
            }
        }
    }

    /// Makes all durable that was written.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn flush(&mut self) -> io::Result<()> {
        self.requests.flushes += 1;
        match self.lie {
            Some(Lie::DropFlush) => Ok(()),
            Some(Lie::DropMapFlush) => self.write_back_without_map(),
            None | Some(Lie::IgnoreFua | Lie::ReportEarly) => self.write_back(),
        }
    }

    /// Writes back all but the writes to the map since the last flush.
    fn write_back_without_map(&mut self) -> io::Result<()> {
        let mut number = 0..;
        let is_late = |write: &mut UnflushedWrite| {
            let is_new = number.next() >= Some(self.late);
            is_new && write.iter().any(|(sector, _)| self.map.contains(sector))
        };
        let late: Vec<_> = self.unflushed.extract_if(.., is_late).collect();
        self.write_back()?;
        self.late = late.len();
        late.into_iter().try_for_each(|write| {
            self.newest.extend(write.iter().copied());
            self.cache(write)
        })
    }

    /// The writes that the file does not have, in the order of completion. Reported writes that
    /// were not made are none of it.
    pub(crate) fn into_unflushed(self) -> (File, Vec<UnflushedWrite>) {
        (self.file, self.unflushed)
    }

    fn cache(&mut self, write: UnflushedWrite) -> io::Result<()> {
        self.unflushed_bytes += write.len() * SECTOR;
        self.unflushed.push(write);
        if self.unflushed_bytes > MOST_UNFLUSHED { self.write_back() } else { Ok(()) }
    }

    fn write_back(&mut self) -> io::Result<()> {
        for write in &self.unflushed {
            write_sectors(&self.file, write.iter())?;
        }
        self.unflushed.clear();
        (self.unflushed_bytes, self.late) = (0, 0);
        self.newest.clear();
        self.newest.extend(self.early.iter().flatten().copied());
        Ok(())
    }

    /// A durable write: older ones of its sectors can no longer reach the disk after it.
    fn make_durable(&mut self, first: u64, write: &UnflushedWrite) -> io::Result<()> {
        write_sectors(&self.file, write.iter())?;
        let range = first..first + write.len() as u64;
        self.forget(&range);
        for sector in range {
            self.newest.remove(&sector);
        }
        Ok(())
    }

    fn forget(&mut self, range: &Range<u64>) {
        for write in &mut self.unflushed {
            write.retain(|(sector, _)| !range.contains(sector));
        }
    }
}

/// Writes sectors to a file, those that follow each other in one call.
pub(crate) fn write_sectors<'sector>(
    file: &File,
    sectors: impl Iterator<Item = &'sector (u64, Sector)>,
) -> io::Result<()> {
    let (mut run, mut start, mut next) = (Vec::new(), 0, 0);
    for (sector, data) in sectors {
        if *sector != next && !run.is_empty() {
            file.write_all_at(&run, start * SECTOR as u64)?;
            run.clear();
        }
        if run.is_empty() {
            start = *sector;
        }
        run.extend_from_slice(data);
        next = sector + 1;
    }
    file.write_all_at(&run, start * SECTOR as u64)
}
