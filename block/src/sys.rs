//! System calls that rustix does not wrap. Each takes descriptors and plain values only.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::ioctl::{Getter, opcode};

/// Performs an open-file-description lock command (fcntl(2), `F_OFD_SETLK` or `F_OFD_GETLK`) of the
/// given type (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`) on the whole file.
///
/// # Errors
///
/// The host's error.
#[expect(clippy::cast_possible_truncation, reason = "the constants fit the fields")]
pub(crate) fn ofd_lock(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
) -> io::Result<libc::flock> {
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
