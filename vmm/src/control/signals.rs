//! The signals that end the program, read from a descriptor instead of a handler.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use vmm_sys_util::signal::{Error, block_signal, create_sigset};

use crate::sys;

/// From a service manager, Ctrl-C, a closed terminal and Ctrl-\.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The pending signals of [`SIGNALS`]. Read by one thread at a time.
pub(crate) struct Signals {
    descriptor: OwnedFd,
    taken: AtomicU32,
}

impl Signals {
    /// Blocks the signals and opens the descriptor. Threads inherit the mask, so no thread may
    /// exist yet. A signal that the parent ignores stays ignored: nohup(1) ignores SIGHUP, and a
    /// shell without job control SIGINT and SIGQUIT of its background jobs.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn block() -> io::Result<Self> {
        let mut heard = Vec::new();
        for signal in SIGNALS {
            if sys::is_signal_ignored(signal)? {
                continue;
            }
            match block_signal(signal) {
                // The parent blocked it, and the mask is inherited.
                Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => heard.push(signal),
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        // A write beyond RLIMIT_FSIZE shall fail with EFBIG, not end the program.
        sys::ignore_signal(libc::SIGXFSZ)?;
        let descriptor = sys::signalfd(&create_sigset(&heard)?)?;
        Ok(Self { descriptor, taken: AtomicU32::new(0) })
    }

    /// Takes the next pending signal.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be read.
    pub(crate) fn next(&self) -> io::Result<Option<libc::c_int>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.descriptor, &mut info) {
            Ok(_) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                // `ssi_signo` is the first field.
                let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                Ok(number.and_then(|number| libc::c_int::try_from(number).ok()))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Number of signals taken.
    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl AsFd for Signals {
    /// Readable while a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
