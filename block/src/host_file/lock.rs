//! The lock that keeps two virtual machines off one image. Control thread only.
//!
//! An open-file-description lock on the whole file. The kernel drops it with the last descriptor,
//! however the process ends, and it conflicts with the byte-range locks of other monitors. It is
//! advisory.

use std::fs::File;
use std::io;
use std::path::Path;

use super::holder;
use crate::OpenError;
use crate::sys::ofd_lock;

/// Locks the file, shared if `read_only`, else exclusively.
///
/// # Errors
///
/// Another process holds a conflicting lock, or the host's error.
pub(super) fn acquire(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    match ofd_lock(file, libc::F_OFD_SETLK, kind) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            let conflict = ofd_lock(file, libc::F_OFD_GETLK, kind).ok();
            let pid = conflict.and_then(|lock| owner(&lock, file));
            Err(OpenError::InUse { path: path.into(), pid })
        }
        Err(source) => Err(OpenError::Host { path: path.into(), what: "lock it", source }),
    }
}

/// Releases the lock of a file that is no longer used. Closing the last descriptor would do so too,
/// but an io_uring may keep one for a moment after the ring itself is closed.
pub(super) fn release(file: &File) {
    // Without a lock, or on a file system without locks, there is nothing to release.
    let _ = ofd_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK);
}

/// State of the lock on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLock {
    /// Not locked.
    Free,
    /// Locked by readers.
    Shared {
        /// One of them, if the host reports it.
        pid: Option<u32>,
    },
    /// Locked by a writer.
    Exclusive {
        /// The writer, if the host reports it.
        pid: Option<u32>,
    },
}

/// Queries the lock on the file and takes none.
///
/// # Errors
///
/// The host's error.
pub(crate) fn query(file: &File) -> io::Result<ImageLock> {
    let found = ofd_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK)?;
    Ok(match libc::c_int::from(found.l_type) {
        libc::F_UNLCK => ImageLock::Free,
        libc::F_RDLCK => ImageLock::Shared { pid: owner(&found, file) },
        _ => ImageLock::Exclusive { pid: owner(&found, file) },
    })
}

/// The process that holds a lock. The kernel reports -1 for open-file-description locks.
fn owner(lock: &libc::flock, file: &File) -> Option<u32> {
    u32::try_from(lock.l_pid).ok().filter(|&pid| pid > 0).or_else(|| holder::find(file))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};
    use tempfile::NamedTempFile;

    use super::*;

    /// A process-owned lock conflicts with an open-file-description lock of the same process.
    #[test]
    fn a_refusal_names_the_holder() {
        let held = NamedTempFile::new().unwrap();
        fcntl_lock(held.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let again = File::options().read(true).write(true).open(held.path()).unwrap();
        let refusal = acquire(&again, held.path(), false).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(refusal.ends_with(&format!("in use by process {pid}")), "{refusal}");
    }
}
