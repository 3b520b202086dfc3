//! The signals that end the program, read from a descriptor instead of a handler.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use vmm_sys_util::signal::{Error, block_signal, create_sigset};

use crate::sys;

/// From a service manager, Ctrl-C, a closed terminal and Ctrl-\.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The pending signals of [`SIGNALS`].
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals and opens the descriptor. Threads inherit the mask, so no thread may
    /// exist yet.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn block() -> io::Result<Self> {
        for signal in SIGNALS {
            match block_signal(signal) {
                // The parent blocked it, and the mask is inherited.
                Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        // A write beyond RLIMIT_FSIZE shall fail with EFBIG, not end the program.
        sys::ignore_signal(libc::SIGXFSZ)?;
        sys::signalfd(&create_sigset(&SIGNALS)?).map(Self)
    }

    /// Takes the next pending signal.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be read.
    pub(crate) fn next(&self) -> io::Result<Option<libc::c_int>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(_) => {
                // `ssi_signo` is the first field.
                let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                Ok(number.and_then(|number| libc::c_int::try_from(number).ok()))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Signals {
    /// Readable while a signal is pending.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
