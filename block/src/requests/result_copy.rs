//! Results of host calls that several requests share.

use std::io;

/// The same result for another request.
pub(super) fn copy_of(result: &io::Result<()>) -> io::Result<()> {
    result.as_ref().copied().map_err(copy_of_error)
}

/// The same error for another request.
pub(super) fn copy_of_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error)
}
