//! Opening an image without surprises. Control thread only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::lock;
use crate::{DiskOptions, ImageLocking, OpenError};

/// The type of file that stores the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    BlockDevice,
}

/// Finds the file at `path` without opening it: opening a FIFO or a tape has side effects.
///
/// # Errors
///
/// The host's error, or the file is neither a regular file nor a block device.
pub(crate) fn find(path: &Path) -> Result<(OwnedFd, FileKind), OpenError> {
    let host_error = |what| {
        move |source: Errno| OpenError::Host { path: path.into(), what, source: source.into() }
    };
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(host_error("find it"))?;
    let stat = rustix::fs::fstat(&found).map_err(host_error("query it"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((found, FileKind::Regular)),
        FileType::BlockDevice => Ok((found, FileKind::BlockDevice)),
        _ => {
            let why = "a disk is a regular file or a block device; this is neither".into();
            Err(OpenError::Unsuitable { path: path.into(), why })
        }
    }
}

/// Opens the file that was found and locks it. Retries for a while if it is in use.
///
/// # Errors
///
/// The host's error, or another process holds the file.
pub(crate) fn claim(
    found: &OwnedFd,
    kind: FileKind,
    path: &Path,
    options: &DiskOptions,
) -> Result<File, OpenError> {
    retry_in_use(|| claim_now(found, kind, path, options))
}

/// Retries for a second while another process holds the file: the kernel closes the files of a
/// killed process, and of an engine, only after it has dismantled its `io_uring`s.
pub(super) fn retry_in_use<T>(
    claim_now: impl Fn() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    // Of two processes that open an image at the same time, both may see the other's locks: they
    // must not retry in step.
    let interval = Duration::from_millis(10 + u64::from(std::process::id() % 8));
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match claim_now() {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => thread::sleep(interval),
            outcome => return outcome,
        }
    }
}

fn claim_now(
    found: &OwnedFd,
    kind: FileKind,
    path: &Path,
    options: &DiskOptions,
) -> Result<File, OpenError> {
    let exclusive = match kind {
        FileKind::BlockDevice if !options.read_only => OFlags::EXCL,
        _ => OFlags::empty(),
    };
    let file = reopen(found, flags(options) | exclusive)
        .map_err(|source| open_error(path, options, source))?;
    if options.lock == ImageLocking::On {
        lock::acquire(&file, path, options.read_only)?;
    }
    Ok(file)
}

/// Locks an image that is read and that no process may change meanwhile, until the last use of
/// `file`. On a file system without locks it does nothing. Retries for a while if it is in use.
///
/// # Errors
///
/// Another process writes it ([`OpenError::InUse`]), or the host's error.
pub fn lock_unchanged(file: &File, path: &Path) -> Result<(), OpenError> {
    match retry_in_use(|| lock::acquire(file, path, true)) {
        Err(OpenError::Host { source, .. }) if lock::has_no_locks(&source) => Ok(()),
        result => result,
    }
}

/// Opens and locks a file, for the simulator: without a retry, and without a search for the process
/// that holds it. `None` if another description holds a conflicting lock.
///
/// # Errors
///
/// The host's error.
pub(crate) fn claim_if_free(found: &File, options: &DiskOptions) -> io::Result<Option<File>> {
    let file = reopen(found, flags(options))?;
    Ok(lock::try_acquire(&file, options.read_only)?.then_some(file))
}

pub(super) fn open_error(path: &Path, options: &DiskOptions, source: io::Error) -> OpenError {
    let (path, cache) = (path.into(), options.cache);
    match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse { path, pid: None },
        Some(libc::EINVAL) if cache.is_direct() => OpenError::Unsuitable {
            path,
            why: format!("its file system has no direct I/O, which cache mode {cache} needs"),
        },
        _ => OpenError::Host { path, what: "open it", source },
    }
}

/// The flags a disk is opened with.
pub(super) fn flags(options: &DiskOptions) -> OFlags {
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let direct = if options.cache.is_direct() { OFlags::DIRECT } else { OFlags::empty() };
    access | direct | OFlags::CLOEXEC
}

/// Opens the file that `fd` refers to, even if its path now names another one. Needs `/proc`.
///
/// # Errors
///
/// The host's error.
pub(crate) fn reopen(fd: impl AsFd, flags: OFlags) -> io::Result<File> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(File::from(rustix::fs::open(link, flags, Mode::empty())?))
}

/// Sets `O_NOATIME`, which makes reads cheaper. Only the file's owner may (open(2)); for others
/// reads keep updating the access time.
pub(crate) fn without_access_times(file: File) -> File {
    if let Ok(flags) = rustix::fs::fcntl_getfl(&file) {
        let _ = rustix::fs::fcntl_setfl(&file, flags | OFlags::NOATIME);
    }
    file
}
