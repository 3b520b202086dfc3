//! The lock on an image, which keeps other machines and monitors off it. Control thread only,
//! except for [`share`].
//!
//! Byte locks as QEMU has them (`block/file-posix.c`): a process that uses the image holds shared
//! open-file-description locks, one byte for each permission it uses and one for each permission
//! that it denies to others, and fails to open the image if another process holds the opposite of
//! one of them. So machines of both monitors exclude each other. Shared locks let others read these
//! bytes where locks are mandatory, as backup programs do on NAS systems.
//!
//! A lock lasts until the last use of its open file description, and a request in flight is one.
//! Every description that is written through holds the locks: after a kill the image stays locked
//! until the kernel has completed the last write.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use super::holder::{self, Refusal};
use crate::OpenError;
use crate::sys::{OfdLock, ofd_lock_query, ofd_lock_set};

/// First byte for permissions in use (`RAW_LOCK_PERM_BASE`).
const USED: u64 = 100;
/// First byte for permissions denied to others (`RAW_LOCK_SHARED_BASE`).
const DENIED: u64 = 200;
/// The bytes of all permissions.
const BYTES: [RangeInclusive<u64>; 2] = [USED..=USED + 63, DENIED..=DENIED + 63];

/// Permissions, as bit numbers (`BLK_PERM_*`).
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// Denied to others: changes under a guest.
const DENIED_PERMISSIONS: [u64; 2] = [WRITE, RESIZE];

fn used_permissions(read_only: bool) -> &'static [u64] {
    if read_only { &[READ] } else { &[READ, WRITE, RESIZE] }
}

/// Locks the file.
///
/// # Errors
///
/// Another process holds a conflicting lock, or the host's error.
pub(crate) fn acquire(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    if try_acquire(file, read_only).map_err(|source| refused(source, file, path))? {
        return Ok(());
    }
    // The holder may have released it since.
    let holder = holder_of_opposite(file, read_only).map_err(|source| lock_error(source, path))?;
    Err(OpenError::InUse { path: path.into(), pid: holder.and_then(|holder| holder.pid) })
}

/// Whether the host's error is that the file system has no locks.
pub(super) fn has_no_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Locks the file. Returns `false` if another description holds a conflicting lock.
///
/// # Errors
///
/// The host's error; `EAGAIN` or `EACCES` if another monitor locks the whole file.
pub(super) fn try_acquire(file: &File, read_only: bool) -> io::Result<bool> {
    share(file, read_only)?;
    for byte in opposite_bytes(read_only) {
        if ofd_lock_query(file, OfdLock::Exclusive, byte..=byte)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes that others lock who deny a permission in use, or use one that is denied.
fn opposite_bytes(read_only: bool) -> impl Iterator<Item = u64> {
    let used = used_permissions(read_only).iter().map(|permission| DENIED + permission);
    used.chain(DENIED_PERMISSIONS.iter().map(|permission| USED + permission))
}

/// The process that would refuse a disk with the image `file`. Queries the locks and takes none.
///
/// # Errors
///
/// The host's error.
pub fn image_holder(file: &File, read_only: bool) -> io::Result<Option<ImageHolder>> {
    match conflict(file, OfdLock::Shared, 0..=u64::MAX)? {
        None => holder_of_opposite(file, read_only),
        holder => Ok(holder),
    }
}

/// The holder of a permission that is denied, or the one that denies a permission in use.
fn holder_of_opposite(file: &File, read_only: bool) -> io::Result<Option<ImageHolder>> {
    for byte in opposite_bytes(read_only) {
        if let Some(holder) = conflict(file, OfdLock::Exclusive, byte..=byte)? {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// Takes the locks for another description of a file that is [acquired](acquire).
///
/// # Errors
///
/// The host's error.
pub(super) fn share(file: &File, read_only: bool) -> io::Result<()> {
    for permission in used_permissions(read_only) {
        let byte = USED + permission;
        ofd_lock_set(file, OfdLock::Shared, byte..=byte)?;
    }
    for permission in DENIED_PERMISSIONS {
        let byte = DENIED + permission;
        ofd_lock_set(file, OfdLock::Shared, byte..=byte)?;
    }
    Ok(())
}

/// Takes the locks for a description through which a file is only read that is [acquired](acquire)
/// through another one, which alone denies changes to others: so that it can [allow](take_over) its
/// own process to write.
///
/// # Errors
///
/// The host's error.
pub(super) fn share_reading(file: &File) -> io::Result<()> {
    let byte = USED + READ;
    ofd_lock_set(file, OfdLock::Shared, byte..=byte)
}

/// Locks the file for `writer`, which `reader` has acquired to read it. Others are kept off at all
/// times. The reader [denies changes](deny_changes) again afterwards, before the writer is closed.
///
/// # Errors
///
/// Another process uses the file, or the host's error. The reader is as before.
pub(super) fn take_over(writer: &File, reader: &File, path: &Path) -> Result<(), OpenError> {
    share(writer, false).map_err(|source| refused(source, writer, path))?;
    let taken = allow_changes(reader)
        .map_err(|source| lock_error(source, path))
        .and_then(|()| acquire(writer, path, false));
    taken.inspect_err(|_| {
        // Nothing conflicts with it while the writer has its locks.
        let _ = deny_changes(reader);
        release(writer);
    })
}

fn allow_changes(reader: &File) -> io::Result<()> {
    DENIED_PERMISSIONS.iter().try_for_each(|permission| {
        let byte = DENIED + permission;
        ofd_lock_set(reader, OfdLock::None, byte..=byte)
    })
}

/// Takes the locks of a reader again.
///
/// # Errors
///
/// The host's error.
pub(super) fn deny_changes(reader: &File) -> io::Result<()> {
    share(reader, true)
}

/// The error for a lock that was not granted: other monitors lock the whole file exclusively.
fn refused(source: io::Error, file: &File, path: &Path) -> OpenError {
    if !matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
        return lock_error(source, path);
    }
    let holder = conflict(file, OfdLock::Shared, 0..=u64::MAX).ok().flatten();
    OpenError::InUse { path: path.into(), pid: holder.and_then(|holder| holder.pid) }
}

fn lock_error(source: io::Error, path: &Path) -> OpenError {
    let what = if has_no_locks(&source) {
        "lock it, as its file system has no locks (`lock = \"off\"` opens it without, and then nothing \
         keeps a second machine off it)"
    } else {
        "lock it"
    };
    OpenError::Host { path: path.into(), what, source }
}

/// Releases the locks of a file that is no longer used. Closing the last descriptor would do so
/// too, but an io_uring may keep one for a moment after the ring itself is closed.
pub(super) fn release(file: &File) {
    // Without a lock, or on a file system without locks, there is nothing to release.
    for bytes in BYTES {
        let _ = ofd_lock_set(file, OfdLock::None, bytes);
    }
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

/// Queries the locks on the file and takes none.
///
/// # Errors
///
/// The host's error.
pub(crate) fn query(file: &File) -> io::Result<ImageLock> {
    let writes = USED + WRITE;
    // A writer of either monitor, or a monitor that locks the whole file to write.
    let writer = match conflict(file, OfdLock::Exclusive, writes..=writes)? {
        None => conflict(file, OfdLock::Shared, 0..=u64::MAX)?,
        writer => writer,
    };
    if let Some(ImageHolder { pid }) = writer {
        return Ok(ImageLock::Exclusive { pid });
    }
    let reader = conflict(file, OfdLock::Exclusive, 0..=u64::MAX)?;
    Ok(reader.map_or(ImageLock::Free, |ImageHolder { pid }| ImageLock::Shared { pid }))
}

/// A process that holds a conflicting lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHolder {
    /// Its id, if the host reports it.
    pub pid: Option<u32>,
}

/// The holder of a lock that conflicts with `requested` on `bytes`. The kernel reports no process
/// for open-file-description locks.
fn conflict(
    file: &File,
    requested: OfdLock,
    bytes: RangeInclusive<u64>,
) -> io::Result<Option<ImageHolder>> {
    let found = ofd_lock_query(file, requested, bytes.clone())?;
    let refusal = Refusal { requested, bytes };
    Ok(found.map(|found| ImageHolder { pid: found.pid.or_else(|| holder::find(file, &refusal)) }))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};
    use tempfile::NamedTempFile;

    use super::*;

    fn image() -> NamedTempFile {
        NamedTempFile::new().unwrap()
    }

    /// Another description of the image.
    fn open(image: &NamedTempFile) -> File {
        File::options().read(true).write(true).open(image.path()).unwrap()
    }

    fn acquires(file: &File, read_only: bool) -> bool {
        match acquire(file, Path::new("image"), read_only) {
            Ok(()) => true,
            Err(OpenError::InUse { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// A process-owned lock conflicts with an open-file-description lock of the same process.
    #[test]
    fn a_refusal_names_the_holder() {
        let held = image();
        fcntl_lock(held.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let refusal = acquire(&open(&held), held.path(), false).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(refusal.ends_with(&format!("in use by process {pid}")), "{refusal}");
    }

    #[test]
    fn a_writer_excludes_everyone_and_readers_exclude_writers() {
        for (first, second, both) in
            [(false, false, false), (false, true, false), (true, false, false), (true, true, true)]
        {
            let image = image();
            let (one, two) = (open(&image), open(&image));
            assert!(acquires(&one, first));
            assert_eq!(acquires(&two, second), both, "{first} {second}");
            drop(two);
            release(&one);
            assert!(acquires(&open(&image), second), "the first is released");
        }
    }

    #[test]
    fn a_shared_description_keeps_the_image_locked() {
        let image = image();
        let (control, engine) = (open(&image), open(&image));
        assert!(acquires(&control, false));
        share(&engine, false).unwrap();
        release(&control);
        drop(control);
        assert!(!acquires(&open(&image), false));
        drop(engine);
        assert!(acquires(&open(&image), false));
    }

    /// At no time is the image free for another writer.
    #[test]
    fn a_reader_becomes_the_writer_unless_others_read() {
        let image = image();
        let (reader, engine, writer) = (open(&image), open(&image), open(&image));
        let taken = |writer: &File| take_over(writer, &reader, image.path());
        assert!(acquires(&reader, true));
        share_reading(&engine).unwrap();
        let other = open(&image);
        assert!(acquires(&other, true));
        assert!(matches!(taken(&writer), Err(OpenError::InUse { .. })));
        drop(other);
        let other = open(&image);
        assert!(acquires(&other, true), "the writer has no lock");
        release(&other);
        assert!(!acquires(&open(&image), false), "the reader has its locks");
        taken(&writer).unwrap();
        assert!(!acquires(&open(&image), true) && !acquires(&open(&image), false));
        deny_changes(&reader).unwrap();
        release(&writer);
        assert!(!acquires(&open(&image), false) && acquires(&open(&image), true));
    }

    /// The bytes are those of QEMU's source, which its tests do not change either.
    #[test]
    fn the_bytes_are_those_of_qemu() {
        // A guest's writer holds 100, 101 and 103, and denies 201 and 203.
        for (bytes, writes, reads) in
            [(&[101, 201][..], false, false), (&[100], true, true), (&[201], false, true)]
        {
            let image = image();
            let qemu = open(&image);
            for &byte in bytes {
                ofd_lock_set(&qemu, OfdLock::Shared, byte..=byte).unwrap();
            }
            assert_eq!(acquires(&open(&image), false), writes, "{bytes:?}");
            assert_eq!(acquires(&open(&image), true), reads, "{bytes:?}");
        }
        let image = image();
        assert!(acquires(&open(&image), false));
        let writer = open(&image);
        assert!(acquires(&writer, false));
        for byte in [100, 101, 103, 201, 203] {
            let lock = ofd_lock_query(&open(&image), OfdLock::Exclusive, byte..=byte);
            assert!(lock.unwrap().is_some(), "byte {byte}");
        }
    }

    #[test]
    fn locks_are_queried_without_taking_one() {
        let image = image();
        assert_eq!(query(&open(&image)).unwrap(), ImageLock::Free);
        let pid = Some(std::process::id());
        let reader = open(&image);
        assert!(acquires(&reader, true));
        assert_eq!(query(&open(&image)).unwrap(), ImageLock::Shared { pid });
        release(&reader);
        let whole_file = open(&image);
        ofd_lock_set(&whole_file, OfdLock::Exclusive, 0..=u64::MAX).unwrap();
        assert_eq!(query(&open(&image)).unwrap(), ImageLock::Exclusive { pid });
        assert!(!acquires(&open(&image), true), "another monitor locks the whole file");
    }
}
