//! The limit of core dumps (RLIMIT_CORE).

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets the process leave no core dump. The hard limit stays, so that a debugger can allow one.
///
/// # Errors
///
/// The kernel refuses.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?)
}
