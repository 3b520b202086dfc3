//! Puts a Linux kernel into guest memory so that the first vCPU can enter it.
//!
//! Both image formats start by the 64-bit boot protocol of the kernel's
//! `Documentation/arch/x86/boot.rst`: long mode, identity-mapped low memory, the zero page in RSI.
//! Runs on the control thread before any vCPU exists.

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

/// Why a kernel cannot be booted. Names the file, so that the message stands alone.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The file could not be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The file is no kernel that can start in 64-bit mode.
    #[error("{path} cannot be booted: {why}")]
    NotBootable { path: PathBuf, why: &'static str },
    /// The image is damaged, or places itself outside of RAM.
    #[error("{path} is damaged or asks for memory the machine does not have")]
    Load { path: PathBuf, source: linux_loader::loader::Error },
    /// The file does not fit into RAM below the hole.
    #[error(
        "{path} does not fit into guest memory: it needs {} MiB, there are {} MiB for it; \
         raise machine.memory", needed.div_ceil(MIB), available / MIB
    )]
    TooLarge { path: PathBuf, needed: u64, available: u64 },
    /// The kernel takes only shorter command lines.
    #[error("the command line has {length} bytes, the kernel takes at most {most}")]
    CommandLine { length: usize, most: u32 },
    /// Guest memory lacks an address that every machine has.
    #[error("cannot write boot structures into guest memory")]
    Memory(#[from] GuestMemoryError),
}

impl Error {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Read { path: path.to_owned(), source }
    }
}

/// Loads kernel, initramfs and command line; returns where the first vCPU starts.
///
/// # Errors
///
/// When a file cannot be read or does not fit.
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

fn write_command_line(memory: &GuestMemory, line: &str, most: u32) -> Result<(), Error> {
    let length = line.len();
    if u32::try_from(length).is_ok_and(|length| length > most) {
        return Err(Error::CommandLine { length, most });
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    let end = layout::COMMAND_LINE + length as u64;
    memory.write_obj(0_u8, GuestAddress(end))?;
    Ok(())
}
