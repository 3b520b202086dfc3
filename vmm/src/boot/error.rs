//! Errors of the boot loader.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::layout::MIB;

/// The reason a kernel cannot be booted. Names the file.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The file is not a kernel that starts in 64-bit mode.
    #[error("{path} cannot be booted: {reason}")]
    NotBootable { path: PathBuf, reason: &'static str },
    /// The image is damaged, or its load address is outside of RAM.
    #[error("{path} is damaged, or its load address is outside of guest memory")]
    Load { path: PathBuf, source: linux_loader::loader::Error },
    /// The file does not fit into RAM below the hole.
    #[error(
        "{path} does not fit into guest memory: it needs {} MiB of {} MiB available; \
         raise machine.memory", needed.div_ceil(MIB), available / MIB
    )]
    TooLarge { path: PathBuf, needed: u64, available: u64 },
    /// The command line exceeds the kernel's limit.
    #[error("the command line has {length} bytes, the kernel accepts at most {max}")]
    CommandLine { length: usize, max: u32 },
    /// Guest memory lacks a boot structure's address.
    #[error("cannot write boot structures into guest memory")]
    Memory(#[from] GuestMemoryError),
}

impl BootError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Read { path: path.to_owned(), source }
    }
}
