//! Errors of guest memory.

use std::io;

use thiserror::Error;

use crate::layout::MIB;

/// The reason there is no guest memory.
#[derive(Debug, Error)]
pub(crate) enum MemoryError {
    /// The address space cannot be reserved.
    #[error("cannot reserve {} MiB of address space for guest memory", .0 / MIB)]
    Map(u64, #[source] vm_memory::mmap::FromRangesError),
    /// Guest memory would be in core dumps or in child processes.
    #[error("cannot keep guest memory out of core dumps and child processes")]
    Isolate(#[source] io::Error),
    /// The host is out of memory.
    #[error(
        "cannot allocate guest memory: {requested_mib} MiB requested, {allocated_mib} MiB \
         allocated, {available_mib} MiB available; lower machine.memory or free memory"
    )]
    Populate { requested_mib: u64, allocated_mib: u64, available_mib: String, source: io::Error },
    /// A signal arrived first.
    #[error("stopped while allocating guest memory")]
    Interrupted,
}
