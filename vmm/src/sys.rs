//! System calls for which no dependency has a safe wrapper.
//!
//! Nothing here blocks. Apart from `kvm`, the only module of the program with unsafe code.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::mm::{Advice, madvise};
use vm_memory::MmapRegion;

/// Advice on a mapping that keeps its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryAdvice {
    /// Back the range with transparent huge pages (MADV_HUGEPAGE).
    HugePages,
    /// Allocate all pages of the range now (MADV_POPULATE_WRITE).
    Populate,
}

/// Applies `advice` to the `length` bytes of `region` at `offset`.
///
/// # Errors
///
/// The range is not in the region, or the kernel refuses.
pub(crate) fn advise(
    region: &MmapRegion,
    offset: usize,
    length: usize,
    advice: MemoryAdvice,
) -> io::Result<()> {
    let end = offset.checked_add(length).filter(|end| *end <= region.size());
    end.ok_or(io::ErrorKind::InvalidInput)?;
    let start = region.as_ptr().wrapping_add(offset);
    let advice = match advice {
        MemoryAdvice::HugePages => Advice::LinuxHugepage,
        MemoryAdvice::Populate => Advice::LinuxPopulateWrite,
    };
    // SAFETY: the range lies in the mapping that `region` owns, and neither advice changes
    // contents.
    Ok(unsafe { madvise(start.cast(), length, advice) }?)
}

/// A non-blocking descriptor that is readable while a signal of `set` is pending.
///
/// # Errors
///
/// The process or the host is out of descriptors.
pub(crate) fn signalfd(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    // SAFETY: `set` is an initialised set, and -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether `signal` is ignored in the whole process.
///
/// # Errors
///
/// There is no such signal.
pub(crate) fn is_signal_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, only `action` is written.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded and so initialised it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Ignores `signal` in the whole process.
///
/// # Errors
///
/// The kernel refuses.
pub(crate) fn ignore_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: sets the disposition of one signal, and installs no handler.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends the process by `signal`, as if it had no handler, when the calling handler returns.
pub(crate) fn reraise_with_default_action(signal: libc::c_int) {
    // SAFETY: async-signal-safe; sets the disposition of one signal, and installs no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: async-signal-safe; the signal is blocked until the handler returns.
    unsafe { libc::raise(signal) };
}
