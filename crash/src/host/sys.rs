//! System calls that have no safe wrapper. Each takes descriptors and plain values only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{IntegerSetter, NoArg, Setter};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread, and those that it starts from now on, mounts of their own.
///
/// # Errors
///
/// The host refuses: it takes `CAP_SYS_ADMIN`.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the flag leaves the table of descriptors shared, which is what could harm others.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// `LOOP_CTL_GET_FREE`.
const GET_FREE: u32 = 0x4c82;
/// `LOOP_CONFIGURE`.
const CONFIGURE: u32 = 0x4c0a;
/// `LOOP_CLR_FD`.
const CLEAR: u32 = 0x4c01;
/// `BLKRASET`.
const SET_READAHEAD: u32 = 0x1262;
/// `LO_FLAGS_AUTOCLEAR`.
const AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 128],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// The number of a loop device that is free.
///
/// # Errors
///
/// The host's error.
pub(super) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument, and the kernel returns a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE.into()) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Makes `device` show `file`, with sectors of 512 bytes, until the last who has it open closes it.
///
/// # Errors
///
/// The host's error: `EBUSY` if another program has taken the device.
pub(super) fn configure_loop_device(device: &File, file: &File) -> io::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR,
        names: [0; 128],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = LoopConfig { fd, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: the request reads a `loop_config`, which the assertion above compares in size.
    let request = unsafe { Setter::<CONFIGURE, LoopConfig>::new(config) };
    // SAFETY: as above; nothing is written to the memory of the process.
    Ok(unsafe { rustix::ioctl::ioctl(device.as_fd(), request) }?)
}

/// Detaches `device` from its file, now or when the last who has it open closes it.
///
/// # Errors
///
/// The host's error.
pub(super) fn clear_loop_device(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    let request = unsafe { NoArg::<CLEAR>::new() };
    // SAFETY: as above.
    Ok(unsafe { rustix::ioctl::ioctl(device.as_fd(), request) }?)
}

/// Lets no read of `device` be larger than it was asked for.
///
/// # Errors
///
/// The host's error.
pub(super) fn forbid_readahead(device: &File) -> io::Result<()> {
    // SAFETY: the argument is a number, of sectors.
    let request = unsafe { IntegerSetter::<SET_READAHEAD>::new_usize(0) };
    // SAFETY: as above.
    Ok(unsafe { rustix::ioctl::ioctl(device.as_fd(), request) }?)
}
