//! The signals that ask the program to end, as a descriptor instead of an interruption.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Signals that ask for the end: from a service manager, Ctrl-C, a closed terminal, Ctrl-\.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The pending signals of [`SIGNALS`].
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// From now on the signals are only seen here. Threads inherit this, so it comes before any.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub(crate) fn take_over() -> io::Result<Self> {
        let set = signal_set();
        // SAFETY: `set` is an initialised set; the old mask is not asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // A write beyond the limit on file sizes is an error of that write, and no reason to end.
        // SAFETY: sets the disposition of one signal, with no handler.
        if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `set` is an initialised set, and -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the next pending signal; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be read.
    pub(crate) fn next(&self) -> io::Result<Option<libc::c_int>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let length = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` has room for `length` bytes and is exclusively ours.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), length) };
        match usize::try_from(read) {
            Ok(read) if read == length => {
                // SAFETY: the kernel wrote the whole structure.
                let info = unsafe { info.assume_init() };
                Ok(libc::c_int::try_from(info.ssi_signo).ok())
            }
            Ok(_) => Ok(None),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }
}

impl AsFd for Signals {
    /// Readable while a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that is exclusively ours.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `sigemptyset` initialised it.
    let mut set = unsafe { set.assume_init() };
    for signal in SIGNALS {
        // SAFETY: `set` is initialised and exclusively ours.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
