//! Loads a Linux kernel into guest memory.
//!
//! Both image formats use the 64-bit boot protocol of `Documentation/arch/x86/boot.rst` in Linux:
//! long mode, identity-mapped low memory, the zero page in RSI. Runs on the control thread before
//! any vCPU exists.

mod error;
mod initramfs;
mod kernel;
mod long_mode;
mod reset_vector;
mod zero_page;

use devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::config::KernelConfig;
use crate::layout;

pub(crate) use error::BootError;
pub(crate) use long_mode::enter as enter_long_mode;

/// Loads kernel, initramfs and command line; returns the entry point.
///
/// # Errors
///
/// A file cannot be read or does not fit.
pub(crate) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    config: &KernelConfig,
) -> Result<GuestAddress, BootError> {
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

fn write_command_line(memory: &GuestMemory, line: &str, max: u32) -> Result<(), BootError> {
    let length = line.len();
    if u32::try_from(length).is_ok_and(|length| length > max) {
        return Err(BootError::CommandLine { length, max });
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    let end = layout::COMMAND_LINE + length as u64;
    memory.write_obj(0_u8, GuestAddress(end))?;
    Ok(())
}
