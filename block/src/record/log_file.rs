//! The file of a log: made, locked, appended to and closed. The log thread's, once it is made.
//!
//! Entries are gathered in memory and written in whole pages, past the page cache of the host where
//! its file system allows that. The last page is written again when it has more.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::format::{LOG_SECTOR, LogSuper};
use crate::OpenError;
use crate::host_file::lock_image;
use crate::page::{PAGE, PageBuffer};

/// Bytes of a log that are gathered in memory before they are written.
pub const RECORD_LOG_BYTES: u64 = BUFFER as u64;
const BUFFER: usize = 1 << 20;
/// Bytes in a buffer that are worth a write while more comes.
const ENOUGH: usize = BUFFER - (64 << 10);

/// The store of a log: a file, or that of a test.
pub(super) trait LogStore: Send {
    /// Writes at least a byte of `bytes`, which is whole pages, at byte `at`, and returns how many.
    /// After [`LogStore::cut`] any length and place will do.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Cuts what is beyond `length` bytes.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn cut(&self, length: u64) -> io::Result<()>;

    /// Makes all of it durable.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that are free for it and others; `u64::MAX` if the store cannot tell.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// The file of a log.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// It is written past the page cache.
    is_direct: Cell<bool>,
}

impl LogFile {
    fn new(file: File) -> Self {
        let flags = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT));
        Self { file, is_direct: Cell::new(flags.is_ok()) }
    }

    fn use_page_cache(&self) -> io::Result<()> {
        self.is_direct.set(false);
        Ok(fcntl_setfl(&self.file, fcntl_getfl(&self.file)? - OFlags::DIRECT)?)
    }
}

impl LogStore for LogFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        match self.file.write_at(bytes, at) {
            // It wants another alignment, or what follows a write that was done in part has none.
            Err(error) if self.is_direct.get() && error.kind() == io::ErrorKind::InvalidInput => {
                self.use_page_cache()?;
                self.file.write_at(bytes, at)
            }
            written => written,
        }
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.use_page_cache()?;
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let store = rustix::fs::fstatvfs(&self.file)?;
        if store.f_blocks == 0 {
            return Ok(u64::MAX);
        }
        Ok(store.f_bavail.saturating_mul(store.f_frsize))
    }
}

/// Makes the file of a log, or takes an empty one, and locks it as an image.
///
/// # Errors
///
/// The host's error; another process has it; or it is not empty.
pub(super) fn create(path: &Path) -> Result<LogFile, OpenError> {
    let host_error = |what| move |source| OpenError::Host { path: path.to_owned(), what, source };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A FIFO has no reader to wait for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(host_error("open it as a log"))?;
    let unsuitable = |why: &str| OpenError::Unsuitable { path: path.to_owned(), why: why.into() };
    if !file.metadata().map_err(host_error("query it"))?.is_file() {
        return Err(unsuitable("a log is a regular file; this is none"));
    }
    lock_image(&file, path, false)?;
    // Once it is locked: another machine may have filled it meanwhile.
    if file.metadata().map_err(host_error("query it"))?.len() > 0 {
        let mut first = [0; LOG_SECTOR];
        let is_log = file.read_exact_at(&mut first, 0).is_ok() && LogSuper::decode(&first).is_ok();
        return Err(unsuitable(if is_log {
            "it is the log of an earlier recording; rename or remove it, or name another file"
        } else {
            "a log is a new file, and this one is not empty; name another file"
        }));
    }
    Ok(LogFile::new(file))
}

/// How far a log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogExtent {
    /// Its bytes.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// The number of the completion that follows.
    pub(super) next: u64,
}

/// A log that is being written.
pub(super) struct Log {
    store: Box<dyn LogStore>,
    head: LogSuper,
    buffer: PageBuffer,
    /// Where the buffer is in the file: whole pages from its start.
    start: u64,
    /// Bytes of the buffer in use.
    filled: usize,
    /// Those that the file has.
    kept: usize,
    /// All whole entries.
    whole: LogExtent,
    /// Those that the file has. More in the file is part of an entry that was not completed.
    written: LogExtent,
}

impl Log {
    /// Starts a log with no entries.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn start(store: Box<dyn LogStore>, head: LogSuper) -> io::Result<Self> {
        let none = LogExtent::default();
        let mut log = Self {
            store,
            head,
            buffer: PageBuffer::zeroed(BUFFER),
            start: 0,
            filled: 0,
            kept: 0,
            whole: none,
            written: none,
        };
        log.append(&head.encode())?;
        log.whole.bytes = LOG_SECTOR as u64;
        log.flush()?;
        Ok(log)
    }

    /// The extent of the file.
    pub(super) fn written(&self) -> LogExtent {
        self.written
    }

    /// Bytes of all whole entries.
    pub(super) fn bytes(&self) -> u64 {
        self.whole.bytes
    }

    /// See [`LogStore::free_bytes`].
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        self.store.free_bytes()
    }

    /// Whether the file lacks a part.
    pub(super) fn is_behind(&self) -> bool {
        self.filled > self.kept
    }

    /// Whether there is enough for a write while more comes.
    pub(super) fn has_enough(&self) -> bool {
        self.filled >= ENOUGH
    }

    /// Appends a part of an entry.
    ///
    /// # Errors
    ///
    /// The host's error, of a write that was necessary.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BUFFER - self.filled));
            let room = self.filled..self.filled + part.len();
            if let Some(room) = self.buffer.as_mut_slice().get_mut(room) {
                room.copy_from_slice(part);
            }
            self.filled += part.len();
            bytes = rest;
            if self.filled >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// All that was appended since the last end of an entry is one, of `bytes`. The completion
    /// `next` follows it.
    pub(super) fn end_entry(&mut self, bytes: u64, next: u64) {
        let LogExtent { bytes: before, entries, .. } = self.whole;
        self.whole = LogExtent { bytes: before + bytes, entries: entries + 1, next };
    }

    /// Writes what the file lacks.
    ///
    /// # Errors
    ///
    /// The host's error. What was written before can be read.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.is_behind() {
            return Ok(());
        }
        let padded = self.filled.next_multiple_of(PAGE);
        let buffer = self.buffer.as_mut_slice();
        buffer.get_mut(self.filled..padded).unwrap_or_default().fill(0);
        write_all(&*self.store, buffer.get(..padded).unwrap_or_default(), self.start)?;
        self.written = self.whole;
        let pages = self.filled - self.filled % PAGE;
        buffer.copy_within(pages..self.filled, 0);
        self.start += pages as u64;
        self.filled -= pages;
        self.kept = self.filled;
        Ok(())
    }

    /// Cuts what is not a whole entry, appends the last one and writes how many there are.
    ///
    /// # Errors
    ///
    /// The host's error. What was written before can be read.
    pub(super) fn finish(&mut self, end: &[u8; LOG_SECTOR]) -> io::Result<()> {
        self.store.cut(self.written.bytes)?;
        write_all(&*self.store, end, self.written.bytes)?;
        self.written.bytes += LOG_SECTOR as u64;
        self.written.entries += 1;
        // A host that crashes leaves no count of entries that the log lacks.
        self.store.sync()?;
        let head = LogSuper { entries: self.written.entries, ..self.head };
        write_all(&*self.store, &head.encode(), 0)?;
        self.store.sync()
    }
}

fn write_all(store: &dyn LogStore, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match store.write_at(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a file system that refuses an alignment, or behind a write that was done in part.
    #[test]
    fn what_direct_io_refuses_goes_through_the_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let file = create(&folder.path().join("disk.log")).unwrap();
        let pages = PageBuffer::zeroed(2 * PAGE);
        assert_eq!(file.write_at(pages.as_slice(), 0).unwrap(), 2 * PAGE);
        assert_eq!(file.write_at(b"odd", 5).unwrap(), 3);
        assert_eq!(file.write_at(b"end", 2 * PAGE as u64).unwrap(), 3);
        file.cut(6).unwrap();
        let bytes = std::fs::read(folder.path().join("disk.log")).unwrap();
        assert_eq!(bytes, b"\0\0\0\0\0o");
    }
}
