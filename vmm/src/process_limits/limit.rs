//! One limit of a process.

/// A number of descriptors or threads that the process must not exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessLimit {
    /// The limit as its owner knows it: a command, or a file of a cgroup.
    pub(crate) name: String,
    /// The setting that raises it.
    pub(crate) setting: &'static str,
    pub(crate) max: u64,
    /// The part of `max` that is in use by others than the machine.
    pub(crate) in_use: u64,
}

impl ProcessLimit {
    /// The part that the machine can use.
    pub(crate) fn available(&self) -> u64 {
        self.max.saturating_sub(self.in_use)
    }
}
