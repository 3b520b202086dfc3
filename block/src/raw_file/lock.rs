//! The lock that keeps two virtual machines off one image. Control thread only.
//!
//! An open-file-description lock over the whole file: the host drops it with the last descriptor, however
//! the process ends, and it conflicts with the byte-range locks of other monitors. It is advisory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::holder;
use crate::OpenError;

/// Locks the file: shared when `read_only`, else exclusively.
///
/// # Errors
///
/// Another process holds a conflicting lock, or the host refuses to lock.
pub(super) fn take(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    match lock_call(file, libc::F_OFD_SETLK, kind) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            let pid =
                lock_call(file, libc::F_OFD_GETLK, kind).ok().and_then(|lock| owner(&lock, file));
            Err(OpenError::InUse { path: path.into(), pid })
        }
        Err(source) => Err(OpenError::Host { path: path.into(), what: "lock it", source }),
    }
}

/// Gives the lock of a file back that nobody uses any more. The host would do it with the last descriptor, but an io_uring
/// may have one for a moment longer than the ring itself is there.
pub(crate) fn release(file: &File) {
    // What has no lock, or is on a host without them, has nothing to give back.
    let _ = lock_call(file, libc::F_OFD_SETLK, libc::F_UNLCK);
}

/// The lock on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody uses it.
    Free,
    /// Others only read it.
    Shared {
        /// One of them, where the host says.
        pid: Option<u32>,
    },
    /// Somebody writes to it.
    Exclusive {
        /// Who, where the host says.
        pid: Option<u32>,
    },
}

/// Looks who has locked the file, and takes no lock.
///
/// # Errors
///
/// The host does not say.
pub(super) fn look(file: &File) -> io::Result<Lock> {
    let found = lock_call(file, libc::F_OFD_GETLK, libc::F_WRLCK)?;
    Ok(match libc::c_int::from(found.l_type) {
        libc::F_UNLCK => Lock::Free,
        libc::F_RDLCK => Lock::Shared { pid: owner(&found, file) },
        _ => Lock::Exclusive { pid: owner(&found, file) },
    })
}

/// The process that holds a lock. Open-file-description locks are reported with -1.
fn owner(lock: &libc::flock, file: &File) -> Option<u32> {
    u32::try_from(lock.l_pid).ok().filter(|&pid| pid > 0).or_else(|| holder::find(file))
}

#[expect(clippy::cast_possible_truncation, reason = "the constants fit the fields")]
fn lock_call(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes the one `flock` passed, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(lock) }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};
    use tempfile::NamedTempFile;

    use super::*;

    /// A lock of the other kind, which belongs to a process, conflicts even with the process's own.
    #[test]
    fn the_holder_is_named_when_the_host_knows_it() {
        let held = NamedTempFile::new().unwrap();
        fcntl_lock(held.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let again = File::options().read(true).write(true).open(held.path()).unwrap();
        let refusal = take(&again, held.path(), false).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(refusal.ends_with(&format!("in use by process {pid}")), "{refusal}");
    }
}
