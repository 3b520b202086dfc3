//! System calls for which no dependency has a safe wrapper.
//!
//! Nothing here blocks. Apart from `kvm`, the only module of the program with unsafe code.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::mm::{Advice, madvise};
use vm_memory::MmapRegion;

/// Unmaps the pages of the program's text until they are used again. Most of those that are
/// resident after the start were for the start only: the command line, the configuration and its
/// report.
pub(crate) fn release_text() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Some((start, length)) = text_range(&maps, release_text as *const () as usize) else {
        return;
    };
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is the mapping of the text, which is private to this process, backed by the
    // program's file and never written: the linker refuses text relocations. The kernel reads each
    // page from the file again when it is used.
    let _ = unsafe { madvise(start, length, Advice::LinuxDontNeed) };
}

/// Start and length of the mapping in proc_pid_maps(5) that has the address, if it can be executed
/// and not written.
fn text_range(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let is_text = (start..end).contains(&address) && rest.starts_with("r-xp ");
        is_text.then_some((start, end - start))
    })
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_mapping_that_has_the_address_and_is_not_written() {
        let maps = "1000-2000 r--p 0 fe:00 7 /bin/b\n2000-5000 r-xp 1000 fe:00 7 /bin/b\n\
                    5000-6000 rwxp 0 00:00 0\n";
        assert_eq!(text_range(maps, 0x2000), Some((0x2000, 0x3000)));
        for other in [0x1fff, 0x5000, 0x7000] {
            assert_eq!(text_range(maps, other), None);
        }
    }

    #[test]
    fn the_program_runs_on_after_its_text_was_released() {
        release_text();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(text_range(&maps, release_text as *const () as usize).is_some());
    }
}
