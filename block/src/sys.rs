//! System calls that rustix does not wrap. Each takes descriptors and plain values only.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{Getter, Updater, opcode};

/// A kind of open-file-description lock (fcntl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OfdLock {
    None,
    Shared,
    Exclusive,
}

/// A lock of another open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockConflict {
    /// Its process; `None` for open-file-description locks.
    pub(crate) pid: Option<u32>,
}

/// Sets or releases the lock on a range of bytes of the file. Does not wait.
///
/// # Errors
///
/// The host's error: `EAGAIN` or `EACCES` if another description holds a conflicting lock.
pub(crate) fn ofd_lock_set(
    file: &File,
    lock: OfdLock,
    bytes: RangeInclusive<u64>,
) -> io::Result<()> {
    ofd_lock(file, libc::F_OFD_SETLK, lock, &bytes).map(drop)
}

/// A lock of another description that conflicts with `lock` on a range of bytes of the file.
///
/// # Errors
///
/// The host's error.
pub(crate) fn ofd_lock_query(
    file: &File,
    lock: OfdLock,
    bytes: RangeInclusive<u64>,
) -> io::Result<Option<LockConflict>> {
    let found = ofd_lock(file, libc::F_OFD_GETLK, lock, &bytes)?;
    let is_free = libc::c_int::from(found.l_type) == libc::F_UNLCK;
    let pid = u32::try_from(found.l_pid).ok().filter(|&pid| pid > 0);
    Ok((!is_free).then_some(LockConflict { pid }))
}

#[expect(clippy::cast_possible_truncation, reason = "the constants fit the fields")]
fn ofd_lock(
    file: &File,
    command: libc::c_int,
    lock: OfdLock,
    bytes: &RangeInclusive<u64>,
) -> io::Result<libc::flock> {
    let kind = match lock {
        OfdLock::None => libc::F_UNLCK,
        OfdLock::Shared => libc::F_RDLCK,
        OfdLock::Exclusive => libc::F_WRLCK,
    };
    let len = bytes.end().saturating_sub(*bytes.start()).saturating_add(1);
    let mut flock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::try_from(*bytes.start()).unwrap_or(libc::off_t::MAX),
        // Zero is to the end of the file, whatever its size.
        l_len: libc::off_t::try_from(len).unwrap_or(0),
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes the one `flock` passed, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut flock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(flock) }
}

/// Lets the calling thread use the processor and the disks of the host when others do not, as far
/// as the host's schedulers support that (`nice` 19, I/O class idle). A refusal of the host has no
/// effect.
pub(crate) fn lower_priority() {
    // `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` above its 13 bits of data (ioprio_set(2)).
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: the call takes numbers only. 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    // SAFETY: as above; on Linux the priority is that of the thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// `ZFS_MAX_DATASET_NAME_LEN`.
const ZFS_NAME_LEN: usize = 256;
/// `BLKZNAME` of ZFS's `sys/fs/zfs.h`: `_IOR(0x12, 125, char[256])`.
const BLKZNAME: rustix::ioctl::Opcode = opcode::read::<[u8; ZFS_NAME_LEN]>(0x12, 125);

/// The dataset name of a ZFS volume. `volume` is a block device of ZFS's driver.
///
/// # Errors
///
/// The host's error.
pub(crate) fn zvol_name(volume: &File) -> io::Result<String> {
    // SAFETY: the opcode encodes this size and direction.
    let get_name = unsafe { Getter::<BLKZNAME, [u8; ZFS_NAME_LEN]>::new() };
    // SAFETY: the driver writes at most the 256 bytes of the array, any value of which is valid.
    let name = unsafe { rustix::ioctl::ioctl(volume, get_name)? };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Size of `struct btrfs_ioctl_fs_info_args`; `fsid` are the 16 bytes from 16.
const BTRFS_FS_INFO_LEN: usize = 1024;
/// `BTRFS_IOC_FS_INFO` of `linux/btrfs.h`.
const BTRFS_IOC_FS_INFO: rustix::ioctl::Opcode = opcode::read::<[u8; BTRFS_FS_INFO_LEN]>(0x94, 31);

/// The UUID of the btrfs that a file is on. Changes nothing.
///
/// # Errors
///
/// The host's error, among others if the file is on another file system.
pub(crate) fn btrfs_fsid(file: impl AsFd) -> io::Result<[u8; 16]> {
    let mut info = [0; BTRFS_FS_INFO_LEN];
    // SAFETY: the opcode encodes this size; the kernel reads flags from the array, which are 0,
    // and writes at most its 1024 bytes, any value of which is valid.
    let query = unsafe { Updater::<BTRFS_IOC_FS_INFO, [u8; BTRFS_FS_INFO_LEN]>::new(&mut info) };
    // SAFETY: the array that `query` refers to outlives the call.
    unsafe { rustix::ioctl::ioctl(file, query)? };
    let fsid = info.get(16..32).and_then(|fsid| fsid.try_into().ok());
    fsid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
