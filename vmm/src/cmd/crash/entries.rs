//! The entries of a log, one after the other. They need no base.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use block::{LOG_SECTOR, LogEntry, LogEntryError, LogKind, LogSuper, LogSuperError};
use thiserror::Error;

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub(super) enum EntriesError {
    /// The host's error.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// It is none.
    #[error(transparent)]
    Super(#[from] LogSuperError),
    /// An entry that the log counts is wrong.
    #[error("entry {0}: {1}")]
    Entry(u64, #[source] LogEntryError),
    /// An entry that the log counts is missing.
    #[error("it ends at entry {0}, and should have {1}")]
    Truncated(u64, u64),
}

/// A log that is read from its start.
pub(super) struct LogEntries {
    file: File,
    head: LogSuper,
    /// The sector of the last entry that was read.
    sector: Vec<u8>,
    /// Where the next entry is, in bytes.
    at: u64,
    bytes: u64,
    /// Number of entries that were read.
    read: u64,
}

impl LogEntries {
    /// Opens a log.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is none.
    pub(super) fn open(path: &Path) -> Result<Self, EntriesError> {
        let file = File::open(path)?;
        let bytes = size_of_file(&file)?;
        let mut first = [0; LOG_SECTOR];
        if bytes < LOG_SECTOR as u64 {
            return Err(LogSuperError::Signature.into());
        }
        file.read_exact_at(&mut first, 0)?;
        let head = LogSuper::decode(&first)?;
        let sector = vec![0; head.sector as usize];
        Ok(Self { file, head, sector, at: u64::from(head.sector), bytes, read: 0 })
    }

    /// Bytes of a sector of the log.
    pub(super) fn unit(&self) -> u64 {
        u64::from(self.head.sector)
    }

    /// Entries that the log says it has.
    pub(super) fn counted(&self) -> u64 {
        self.head.entries
    }

    /// Reads the next entry, with its text; `None` at the end. Entries that the log does not count
    /// are of it as long as they have a valid stamp.
    ///
    /// # Errors
    ///
    /// The log is damaged, or cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<(LogEntry, String)>, EntriesError> {
        let is_counted = self.read < self.head.entries;
        let truncated = || EntriesError::Truncated(self.read, self.head.entries);
        let data = self.at.checked_add(self.unit()).filter(|data| *data <= self.bytes);
        let Some(data) = data else {
            return if is_counted { Err(truncated()) } else { Ok(None) };
        };
        self.file.read_exact_at(&mut self.sector, self.at)?;
        let entry = match LogEntry::decode(&self.sector) {
            Ok(entry) if is_counted || entry.stamp.is_some() => entry,
            Err(error) if is_counted => return Err(EntriesError::Entry(self.read, error)),
            Ok(_) | Err(_) => return Ok(None),
        };
        let len = entry.data_sectors().checked_mul(self.unit());
        let next = len.and_then(|len| data.checked_add(len)).filter(|next| *next <= self.bytes);
        let Some(next) = next else {
            return if is_counted { Err(truncated()) } else { Ok(None) };
        };
        let text = String::from_utf8_lossy(entry.text(&self.sector)).into_owned();
        self.at = next;
        self.read += 1;
        Ok(Some((entry, text)))
    }
}

/// Whether the log has a request that changes the disk.
///
/// # Errors
///
/// As [`LogEntries::open`] and [`LogEntries::next`].
pub(super) fn has_writes(path: &Path) -> Result<bool, EntriesError> {
    let mut entries = LogEntries::open(path)?;
    while let Some((entry, _)) = entries.next()? {
        if !matches!(entry.kind, LogKind::Flush | LogKind::Mark | LogKind::End) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes of a file or a block device.
fn size_of_file(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}
