//! Which parts of a file hold data, as its file system tells (`SEEK_DATA` and `SEEK_HOLE` of lseek(2)).
//!
//! Blocks, but only on the file system's own metadata. Space that was reserved and never written counts as a hole:
//! it reads zero. A block device does not tell: all of it counts as data.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{ByteOffset, ByteRange};

/// A run of a disk that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies.
    pub range: ByteRange,
    /// Whether the host keeps data for it. If not, it reads zero.
    pub data: bool,
}

/// The extents of a file from one offset to another, in order and without a gap.
#[derive(Debug)]
pub struct Extents<'f> {
    file: &'f File,
    at: u64,
    end: u64,
    /// The host does not tell what is where.
    opaque: bool,
}

impl<'f> Extents<'f> {
    /// The extents from `start` to `end`, in bytes. A file that ends before `end` goes on as a hole.
    #[must_use]
    pub fn new(file: &'f File, start: u64, end: u64) -> Self {
        let opaque = !file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self { file, at: start, end, opaque }
    }

    /// Whether the next run is data, and where it ends.
    fn look(&self) -> io::Result<(bool, u64)> {
        if self.opaque {
            return Ok((true, self.end));
        }
        loop {
            match rustix::fs::seek(self.file, SeekFrom::Data(self.at)) {
                // Behind the last data.
                Err(Errno::NXIO) => return Ok((false, self.end)),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, self.end)),
                Ok(data) if data > self.at => return Ok((false, data.min(self.end))),
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            match rustix::fs::seek(self.file, SeekFrom::Hole(self.at)) {
                Ok(hole) if hole > self.at => return Ok((true, hole.min(self.end))),
                // Punched out between the two questions: ask again.
                Ok(_) | Err(Errno::NXIO) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    /// The next extent. Others may change the file meanwhile: then neighbours may be of the same kind.
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let start = ByteOffset(self.at);
        match self.look() {
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

/// How long a queue may wait for an answer about what is allocated. Of a fragmented file, hundreds of extents may take tens of
/// milliseconds where the host has to fetch them.
pub(crate) const LONGEST_LOOK: Duration = Duration::from_millis(1);

/// So many are worth an answer in any case.
const FEW: usize = 16;

/// As many extents as come within `limit`, but a [few](FEW) in any case if they are there.
///
/// # Errors
///
/// The first that comes.
pub(crate) fn no_longer_than(
    extents: impl Iterator<Item = io::Result<Extent>>,
    limit: Duration,
) -> io::Result<Vec<Extent>> {
    let start = Instant::now();
    let mut found = Vec::new();
    for extent in extents {
        found.push(extent?);
        if found.len() >= FEW && start.elapsed() >= limit {
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
    fn an_answer_that_takes_long_ends_early() {
        let slow = || {
            (0..1000).map(|at| {
                std::thread::sleep(Duration::from_millis(1));
                Ok(Extent { range: ByteRange { start: ByteOffset(at), len: 1 }, data: true })
            })
        };
        assert_eq!(no_longer_than(slow(), Duration::ZERO).unwrap().len(), FEW);
        let some = no_longer_than(slow(), Duration::from_millis(50)).unwrap().len();
        assert!((FEW..=50).contains(&some), "{some}");
        assert_eq!(no_longer_than(slow().take(3), Duration::MAX).unwrap().len(), 3);
        let refused = std::iter::once_with(|| Err(io::ErrorKind::Other.into()));
        assert!(no_longer_than(refused, Duration::MAX).is_err());
    }

    #[test]
    fn extents_cover_what_was_asked_for_and_tell_data_from_holes() {
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
