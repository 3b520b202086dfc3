//! The destinations of console output. Used by the thread `console`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use block::LogLimit;
use rustix::fs::OFlags;

use crate::stream::write_all;

/// The destination of the output.
pub(super) type Sink = Arc<dyn ConsoleSink>;

/// Takes console output.
pub(super) trait ConsoleSink: Send + Sync {
    /// Writes all of `bytes`. Blocks while the reader does not read.
    ///
    /// # Errors
    ///
    /// There will be no reader.
    fn write(&self, bytes: &[u8]) -> io::Result<()>;
}

impl ConsoleSink for OwnedFd {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        write_all(self, bytes)
    }
}

/// A file that output is appended to. A regular file that would exceed its limit is renamed to
/// `NAME.1`, which replaces the file of that name, and started again.
pub(super) struct ConsoleFile {
    path: PathBuf,
    /// Bytes; at most twice as many are kept.
    limit: u64,
    file: Mutex<OpenFile>,
    failures: LogLimit,
}

struct OpenFile {
    file: File,
    /// Length of a regular file.
    bytes: Option<u64>,
}

impl ConsoleFile {
    /// Opens or creates the file.
    ///
    /// # Errors
    ///
    /// It is neither a regular file nor a character device, or cannot be opened.
    pub(super) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = Mutex::new(OpenFile::open(path)?);
        Ok(Self { path: path.to_owned(), limit, file, failures: LogLimit::default() })
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let length = bytes.len() as u64;
        if open.bytes.is_some_and(|before| before > 0 && before + length > self.limit) {
            fs::rename(&self.path, rotated(&self.path))?;
            *open = OpenFile::open(&self.path)?;
        }
        open.file.write_all(bytes)?;
        open.bytes = open.bytes.map(|before| before + length);
        Ok(())
    }
}

impl ConsoleSink for ConsoleFile {
    /// Drops output that the file system does not take: it may take later output.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.append(bytes)
            && let Some(suppressed) = self.failures.check()
        {
            let path = self.path.display();
            tracing::warn!(%error, suppressed, "console output dropped: cannot write to {path}");
        }
        Ok(())
    }
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        // Without O_NONBLOCK, the open of a FIFO waits for a reader.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().create(true).append(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(io::Error::other("not a regular file or a character device"));
        }
        Ok(Self { file, bytes: kind.is_file().then_some(metadata.len()) })
    }
}

/// The name of the file before the current one.
fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_at_its_limit_is_rotated_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        fs::write(&path, "before\n").unwrap();
        let console = ConsoleFile::open(&path, 10).unwrap();
        for line in ["1\n", "2\n", "3\n", "456789012345\n", "x\n"] {
            console.write(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        assert_eq!(fs::read_to_string(folder.path().join("console.1")).unwrap(), "456789012345\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_device_has_no_limit_and_a_full_file_system_no_end() {
        let console = ConsoleFile::open(Path::new("/dev/full"), 4).unwrap();
        for _ in 0..3 {
            console.write(b"lost\n").unwrap();
        }
        assert!(!Path::new("/dev/full.1").exists());
    }

    #[test]
    fn a_fifo_is_refused_without_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        fixtures::host::sh("mkfifo", &[path.to_str().unwrap()]);
        assert!(ConsoleFile::open(&path, 4).is_err());
    }
}
