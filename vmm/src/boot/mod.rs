//! Loads a Linux kernel into guest memory.
//!
//! Both image formats use the 64-bit boot protocol of `Documentation/arch/x86/boot.rst` in Linux:
//! long mode, identity-mapped low memory, the zero page in RSI. Runs on the control thread before any
//! vCPU exists.

mod initramfs;
mod kernel;
mod long_mode;
mod reset_vector;
mod zero_page;

use std::io;
use std::path::{Path, PathBuf};

use devices::GuestMemory;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::config::KernelConfig;
use crate::layout::{self, MIB};

pub(crate) use long_mode::enter as enter_long_mode;

/// The reason a kernel cannot be booted. Names the file.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The file is not a kernel that starts in 64-bit mode.
    #[error("{path} cannot be booted: {why}")]
    NotBootable { path: PathBuf, why: &'static str },
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

impl Error {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Read { path: path.to_owned(), source }
    }
}

/// Loads kernel, initramfs and command line; returns the entry point.
///
/// # Errors
///
/// A file cannot be read or does not fit.
pub(crate) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    config: &KernelConfig,
) -> Result<GuestAddress, Error> {
    let kernel = kernel::load(memory, memory_bytes, &config.image)?;
    let initramfs = config
        .initramfs
        .as_deref()
        .map(|path| initramfs::load(memory, memory_bytes, &kernel, path))
        .transpose()?;
    write_command_line(memory, &config.cmdline, kernel.command_line_max())?;
    zero_page::write(memory, memory_bytes, &kernel, initramfs, config.cmdline.len())?;
    long_mode::write_tables(memory)?;
    reset_vector::write(memory)?;
    Ok(kernel.entry)
}

fn write_command_line(memory: &GuestMemory, line: &str, max: u32) -> Result<(), Error> {
    let length = line.len();
    if u32::try_from(length).is_ok_and(|length| length > max) {
        return Err(Error::CommandLine { length, max });
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    let end = layout::COMMAND_LINE + length as u64;
    memory.write_obj(0_u8, GuestAddress(end))?;
    Ok(())
}
