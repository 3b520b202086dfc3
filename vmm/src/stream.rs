//! Writes to a stream whose reader may be slow.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Writes all of `bytes`. Blocks while the reader does not read.
///
/// # Errors
///
/// The sink cannot be written. A part of `bytes` may have been.
pub(crate) fn write_all(sink: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&sink, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Another process that shares the description has made it non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&sink, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
