//! The file of a log: made, locked, appended to and closed. The log thread's, once it is made.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::format::{LOG_SECTOR, LogSuper};
use crate::OpenError;
use crate::host_file::lock_image;

/// The store of a log: a file, or that of a test.
pub(super) trait LogStore: Send {
    /// Writes at least a byte of `parts` at byte `at`, and returns how many.
    ///
    /// # Errors
    ///
    /// The host's error.
    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

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
}

impl LogStore for File {
    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        if let [part] = parts {
            return FileExt::write_at(self, part, at);
        }
        Ok(rustix::io::pwritev(self, parts, at)?)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Makes the file of a log, or takes an empty one, and locks it as an image.
///
/// # Errors
///
/// The host's error; another process has it; or it is not empty.
pub(super) fn create(path: &Path) -> Result<File, OpenError> {
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
    Ok(file)
}

/// A log that is being written.
pub(super) struct Log {
    store: Box<dyn LogStore>,
    /// Its length in bytes; more is part of an entry that was not completed.
    pub(super) length: u64,
    pub(super) entries: u64,
}

impl Log {
    /// Starts a log with no entries.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn start(store: Box<dyn LogStore>) -> io::Result<Self> {
        let mut log = Self { store, length: 0, entries: 0 };
        log.append(&mut [IoSlice::new(&LogSuper::encode(0))], 0)?;
        Ok(log)
    }

    /// Appends whole entries.
    ///
    /// # Errors
    ///
    /// The host's error. The log has none of them.
    pub(super) fn append(&mut self, parts: &mut [IoSlice<'_>], entries: u64) -> io::Result<()> {
        let mut left = parts;
        let mut at = self.length;
        while !left.is_empty() {
            let now = left.get(..left.len().min(MAX_PARTS)).unwrap_or_default();
            match self.store.write_at(now, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.length = at;
        self.entries += entries;
        Ok(())
    }

    /// Cuts an incomplete entry, appends the last one and writes how many there are.
    ///
    /// # Errors
    ///
    /// The host's error. What was appended before can be read.
    pub(super) fn finish(&mut self, end: &[u8; LOG_SECTOR]) -> io::Result<()> {
        self.store.cut(self.length)?;
        self.append(&mut [IoSlice::new(end)], 1)?;
        let first = LogSuper::encode(self.entries);
        self.store.write_at(&[IoSlice::new(&first)], 0)?;
        self.store.sync()
    }
}

/// Parts of one call: `UIO_MAXIOV`.
const MAX_PARTS: usize = 1024;
