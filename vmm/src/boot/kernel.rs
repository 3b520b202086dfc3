//! The kernel image: a bzImage or an ELF vmlinux.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use devices::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::GuestAddress;

use super::error::BootError;
use crate::layout;

/// The signature of the setup header in a bzImage, and its offset.
const BZIMAGE_MAGIC: &[u8; 4] = b"HdrS";
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
const ELF_MAGIC: &[u8; 4] = b"\x7fELF";
/// ELF header: class ELFCLASS64, machine EM_X86_64.
const ELF_CLASS_OFFSET: usize = 4;
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE_OFFSET: usize = 18;
const ELF_MACHINE_X86_64: [u8; 2] = [62, 0];

/// `xloadflags`: the image has a 64-bit entry point, at this offset.
const XLF_KERNEL_64: u16 = 1 << 0;
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Header fields for a vmlinux, which has no setup header.
const BOOT_FLAG: u16 = 0xaa55;
const VMLINUX_KERNEL_ALIGNMENT: u32 = 0x20_0000;
const VMLINUX_COMMAND_LINE_MAX: u32 = 2047;
const VMLINUX_INITRD_ADDR_MAX: u32 = 0x7fff_ffff;

/// A kernel in guest memory.
pub(super) struct LoadedKernel {
    /// The 64-bit entry point.
    pub(super) entry: GuestAddress,
    /// The setup header for the zero page.
    pub(super) header: setup_header,
    /// The memory that it uses before it evaluates the memory map.
    pub(super) memory: Range<u64>,
}

impl LoadedKernel {
    /// Longest command line, without its NUL.
    pub(super) fn command_line_max(&self) -> u32 {
        self.header.cmdline_size
    }

    /// Highest end of an initramfs.
    pub(super) fn initramfs_end_max(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }
}

/// Loads the image at `path`.
pub(super) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    path: &Path,
) -> Result<LoadedKernel, BootError> {
    let mut file = File::open(path).map_err(BootError::read(path))?;
    let length = file.metadata().map_err(BootError::read(path))?.len();
    let room = layout::HIGH_RAM..low_ram_end(memory_bytes);
    check_fit(path, room.start..room.start.saturating_add(length), &room)?;

    let mut start = [0; 0x206];
    let known = file.read_at(&mut start, 0).map_err(BootError::read(path))?;
    let kernel = match start.get(..known).unwrap_or_default() {
        elf if elf.starts_with(ELF_MAGIC) => load_vmlinux(memory, &mut file, path, elf),
        image if image.get(BZIMAGE_MAGIC_OFFSET..) == Some(BZIMAGE_MAGIC) => {
            load_bzimage(memory, &mut file, path)
        }
        _ => Err(not_bootable(path, "it is neither a bzImage nor an ELF file")),
    }?;
    check_fit(path, kernel.memory.clone(), &room)?;
    Ok(kernel)
}

/// The end of RAM below the hole.
pub(super) fn low_ram_end(memory_bytes: u64) -> u64 {
    layout::ram(memory_bytes).first().map_or(0, |low| low.end)
}

fn check_fit(path: &Path, needed: Range<u64>, room: &Range<u64>) -> Result<(), BootError> {
    if needed.start >= room.start && needed.end <= room.end {
        return Ok(());
    }
    Err(BootError::TooLarge {
        path: path.to_owned(),
        needed: needed.end.saturating_sub(room.start),
        available: room.end.saturating_sub(room.start),
    })
}

fn not_bootable(path: &Path, reason: &'static str) -> BootError {
    BootError::NotBootable { path: path.to_owned(), reason }
}

fn load_bzimage(
    memory: &GuestMemory,
    file: &mut File,
    path: &Path,
) -> Result<LoadedKernel, BootError> {
    let loaded = BzImage::load(memory, None, file, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
    let header = loaded.setup_header.unwrap_or_default();
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(not_bootable(path, "it has no 64-bit entry point"));
    }
    let entry = GuestAddress(loaded.kernel_load.0 + BZIMAGE_ENTRY_64);
    // It unpacks itself to its preferred address, and needs `init_size` bytes there.
    let unpacked_end = header.pref_address.saturating_add(header.init_size.into());
    let memory = loaded.kernel_load.0..loaded.kernel_end.max(unpacked_end);
    Ok(LoadedKernel { entry, header, memory })
}

fn load_vmlinux(
    memory: &GuestMemory,
    file: &mut File,
    path: &Path,
    start: &[u8],
) -> Result<LoadedKernel, BootError> {
    let machine = start.get(ELF_MACHINE_OFFSET..ELF_MACHINE_OFFSET + 2);
    if start.get(ELF_CLASS_OFFSET) != Some(&ELF_CLASS_64) || machine != Some(&ELF_MACHINE_X86_64) {
        return Err(not_bootable(path, "it is an ELF file, but not for x86-64"));
    }
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: u32::from_le_bytes(*BZIMAGE_MAGIC),
        kernel_alignment: VMLINUX_KERNEL_ALIGNMENT,
        cmdline_size: VMLINUX_COMMAND_LINE_MAX,
        initrd_addr_max: VMLINUX_INITRD_ADDR_MAX,
        ..setup_header::default()
    };
    Ok(LoadedKernel {
        entry: loaded.kernel_load,
        header,
        memory: layout::HIGH_RAM..loaded.kernel_end,
    })
}
