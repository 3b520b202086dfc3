//! The limit of open file descriptors (RLIMIT_NOFILE).

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::limit::ProcessLimit;

/// Standard input, output and error: a closed one is a descriptor that is opened next.
const STANDARD_STREAMS: u64 = 3;

/// Raises the soft limit to the hard limit, before the process opens anything.
///
/// # Errors
///
/// The hard limit exceeds `fs.nr_open`.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    inherited();
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// The hard limit; `None` if there is none.
pub(super) fn limit() -> Option<ProcessLimit> {
    let max = getrlimit(Resource::Nofile).maximum?;
    let (name, setting) = ("`ulimit -Hn`".to_owned(), "`LimitNOFILE=` of its systemd unit");
    Some(ProcessLimit { name, setting, max, in_use: inherited() })
}

/// Descriptors that the process was started with. The first call counts them.
fn inherited() -> u64 {
    static INHERITED: OnceLock<u64> = OnceLock::new();
    *INHERITED.get_or_init(|| {
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // One of them is that of the folder.
        u64::try_from(open).unwrap_or(u64::MAX).saturating_sub(1).max(STANDARD_STREAMS)
    })
}
