//! The kernel image and the initramfs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::file::NamedFile;
use crate::config::report::Diagnostic;

/// A bootable format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelFormat {
    BzImage,
    Elf64,
}

impl KernelFormat {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BzImage => "bzImage",
            Self::Elf64 => "ELF",
        }
    }
}

/// The format of a kernel, from the start of its file; or the kind of another file, and a remedy.
fn kernel_format(head: &[u8]) -> Result<KernelFormat, (&'static str, &'static str)> {
    const DISTRIBUTION: &str =
        "name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux";
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|tail| tail.starts_with(magic))
    };
    // The setup header of Documentation/arch/x86/boot.rst.
    if at(0x1fe, b"\x55\xaa") && at(0x202, b"HdrS") {
        return Ok(KernelFormat::BzImage);
    }
    // e_ident: 64 bits, little-endian; e_machine: EM_X86_64.
    if at(0, b"\x7fELF\x02\x01") && at(18, &[62, 0]) {
        return Ok(KernelFormat::Elf64);
    }
    Err(match head {
        _ if at(0, b"\x7fELF") => ("an ELF file, but not for x86-64", DISTRIBUTION),
        _ if at(0x38, b"ARM\x64") => ("a kernel for arm64", DISTRIBUTION),
        _ if at(0, b"\x1f\x8b") => ("a gzip file", "unpack a copy with `gzip -dc`"),
        _ if at(0, b"\x28\xb5\x2f\xfd") => ("a zstd file", "unpack a copy with `zstd -dc`"),
        _ if at(0, b"\xfd7zXZ") => ("an xz file", "unpack a copy with `xz -dc`"),
        _ if at(0, b"MZ") => ("an EFI program without a Linux setup header", DISTRIBUTION),
        [] => ("an empty file", DISTRIBUTION),
        _ => ("neither a bzImage nor an x86-64 ELF file", DISTRIBUTION),
    })
}

fn read_head(file: File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(0x210).read_to_end(&mut head)?;
    Ok(head)
}

/// The format of the kernel at `path`, if it is one.
pub(crate) fn kernel_format_of(path: &Path) -> Option<KernelFormat> {
    kernel_format(&read_head(File::open(path).ok()?).ok()?).ok()
}

pub(super) fn check_kernel(image: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let image = NamedFile::new("kernel image", image);
    let file = match image.open() {
        Ok(file) => file,
        Err(diagnostic) => return Some(diagnostic),
    };
    let head = match read_head(file) {
        Ok(head) => head,
        Err(error) => return Some(image.open_error(&error)),
    };
    let (found, help) = kernel_format(&head).err()?;
    Some(image.error("cannot be booted", format!("this is {found}")).help(help))
}

pub(super) fn check_initramfs(initramfs: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let initramfs = NamedFile::new("initramfs", initramfs);
    let file = match initramfs.open() {
        Ok(file) => file,
        Err(diagnostic) => return Some(diagnostic),
    };
    let is_empty = file.metadata().ok()?.len() == 0;
    let help = "name a cpio archive, or remove `initramfs`";
    is_empty.then(|| initramfs.error("is empty", "0 bytes").help(help))
}
