//! The limits of this process: file descriptors, threads, and the cgroups that it is in.
//!
//! Any thread. Raises its own soft limit of file descriptors, and changes nothing else.

pub(crate) mod cgroup;
mod descriptors;
mod limit;
mod threads;

use std::path::Path;

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
