//! The limits of this process: file descriptors, threads, and the cgroups that it is in.
//!
//! Any thread. Changes its own soft limits of file descriptors and of core dumps, and nothing else.

pub(crate) mod cgroup;
mod core_dumps;
mod descriptors;
mod limit;
mod threads;

use std::path::Path;

pub(crate) use core_dumps::forbid_core_dumps;
pub(crate) use descriptors::raise_descriptor_limit;
pub(crate) use limit::ProcessLimit;

/// The limits that a machine is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessLimits {
    pub(crate) descriptors: Option<ProcessLimit>,
    pub(crate) threads: Vec<ProcessLimit>,
}

impl ProcessLimits {
    /// The limits of this process.
    pub(crate) fn probe() -> Self {
        let root = Path::new("/");
        Self { descriptors: descriptors::limit(), threads: threads::limits(root) }
    }
}
