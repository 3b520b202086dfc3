//! Data and holes of a file, as its file system reports them (`SEEK_DATA` and `SEEK_HOLE`,
//! lseek(2)).
//!
//! Blocks on metadata only. Space that is reserved but was never written counts as a hole: it reads
//! zero. A block device does not report holes: all of it counts as data.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{ByteOffset, ByteRange};

/// A range of a disk that is either data or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The range.
    pub range: ByteRange,
    /// Data; a hole reads zero.
    pub data: bool,
}

/// The extents of a file between two offsets, in order and without gaps.
#[derive(Debug)]
pub struct Extents<'f> {
    file: &'f File,
    at: u64,
    end: u64,
    /// The host reports no holes.
    opaque: bool,
}

impl<'f> Extents<'f> {
    /// The extents from `start` to `end`, in bytes. Beyond the end of the file there is a hole.
    #[must_use]
    pub fn new(file: &'f File, start: u64, end: u64) -> Self {
        let opaque = !file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self { file, at: start, end, opaque }
    }

    /// Whether the next extent is data, and its end.
    fn seek(&self) -> io::Result<(bool, u64)> {
        if self.opaque {
            return Ok((true, self.end));
        }
        loop {
            match rustix::fs::seek(self.file, SeekFrom::Data(self.at)) {
                // Beyond the last data.
                Err(Errno::NXIO) => return Ok((false, self.end)),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, self.end)),
                Ok(data) if data > self.at => return Ok((false, data.min(self.end))),
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            match rustix::fs::seek(self.file, SeekFrom::Hole(self.at)) {
                Ok(hole) if hole > self.at => return Ok((true, hole.min(self.end))),
                // The data was deallocated between the two calls.
                Ok(_) | Err(Errno::NXIO) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    /// The next extent. If the file changes meanwhile, neighbours may be of the same kind.
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let start = ByteOffset(self.at);
        match self.seek() {
            Ok((data, end)) => {
                let len = end - self.at;
                self.at = end;
                Some(Ok(Extent { range: ByteRange { start, len }, data }))
            }
            Err(error) => {
                self.at = self.end;
                Some(Err(error))
            }
        }
    }
}

/// Time limit of a query by a queue. A fragmented file may take tens of milliseconds for some
/// hundreds of extents if the host has to read its metadata.
pub(crate) const QUERY_TIME: Duration = Duration::from_millis(1);

/// Extents returned whatever they take.
const MIN_EXTENTS: usize = 16;

/// The extents found within `limit`, and at least [`MIN_EXTENTS`] if there are as many.
///
/// # Errors
///
/// The first error among them.
pub(crate) fn collect_within(
    extents: impl Iterator<Item = io::Result<Extent>>,
    limit: Duration,
) -> io::Result<Vec<Extent>> {
    let start = Instant::now();
    let mut found = Vec::new();
    for extent in extents {
        found.push(extent?);
        if found.len() >= MIN_EXTENTS && start.elapsed() >= limit {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Start, length and kind of each extent.
    fn extents(file: &File, start: u64, end: u64) -> Vec<(u64, u64, bool)> {
        let extent = |extent: io::Result<Extent>| {
            let Extent { range, data } = extent.unwrap();
            (range.start.0, range.len, data)
        };
        Extents::new(file, start, end).map(extent).collect()
    }

    #[test]
    fn a_slow_query_ends_early() {
        let slow = || {
            (0..1000).map(|at| {
                std::thread::sleep(Duration::from_millis(1));
                Ok(Extent { range: ByteRange { start: ByteOffset(at), len: 1 }, data: true })
            })
        };
        assert_eq!(collect_within(slow(), Duration::ZERO).unwrap().len(), MIN_EXTENTS);
        let some = collect_within(slow(), Duration::from_millis(50)).unwrap().len();
        assert!((MIN_EXTENTS..=50).contains(&some), "{some}");
        assert_eq!(collect_within(slow().take(3), Duration::MAX).unwrap().len(), 3);
        let refused = std::iter::once_with(|| Err(io::ErrorKind::Other.into()));
        assert!(collect_within(refused, Duration::MAX).is_err());
    }

    #[test]
    fn extents_cover_the_range_and_distinguish_data_from_holes() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&vec![1; 1 << 20], MIB).unwrap();
        file.sync_all().unwrap();
        assert_eq!(
            extents(&file, 0, 4 * MIB),
            [(0, MIB, false), (MIB, MIB, true), (2 * MIB, 2 * MIB, false)]
        );
        assert_eq!(extents(&file, MIB + 512, 2 * MIB), [(MIB + 512, MIB - 512, true)]);
        assert_eq!(extents(&file, 3 * MIB, 8 * MIB), [(3 * MIB, 5 * MIB, false)]);
        assert_eq!(extents(&file, 0, 0), []);
    }
}
