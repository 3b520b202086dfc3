//! The finished products of the lab's recipe.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

/// Paths of the products in the cache.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Folder of L1's Debian root, which also provides QEMU for this machine.
    pub root: PathBuf,
    /// Folder of kernels and initramfs archives: `/l2` in L1, plus `host.cpio.zst`.
    pub kit: PathBuf,
    /// Folder of L1's root disk.
    pub image: PathBuf,
    /// Folder of the disk with a stock Debian guest.
    pub debian: PathBuf,
    /// Folder of the saved state of a booted L1.
    pub snapshot: PathBuf,
}

impl Lab {
    /// The products that scenarios use.
    pub(super) fn products(&self) -> [PathBuf; 5] {
        [&self.root, &self.kit, &self.image, &self.debian, &self.snapshot].map(Clone::clone)
    }

    /// Version of the kernel that L1 and the guests boot.
    pub fn kernel_version(&self) -> Result<String> {
        Ok(fs::read_to_string(self.root.join("boot/version"))?.trim().to_owned())
    }
}
