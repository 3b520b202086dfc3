//! The initial RAM disk.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use super::kernel::{LoadedKernel, low_ram_end};

const PAGE: u64 = 4096;

/// Loads the file at `path` at the highest address in low RAM that the kernel accepts.
pub(super) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    kernel: &LoadedKernel,
    path: &Path,
) -> Result<Range<u64>, BootError> {
    let mut file = File::open(path).map_err(BootError::read(path))?;
    let length = file.metadata().map_err(BootError::read(path))?.len();
    let end_max = low_ram_end(memory_bytes).min(kernel.initramfs_end_max());
    let range = place(length, kernel.memory.end, end_max).ok_or_else(|| BootError::TooLarge {
        path: path.to_owned(),
        needed: length,
        available: end_max.saturating_sub(kernel.memory.end),
    })?;
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    memory.read_exact_volatile_from(GuestAddress(range.start), &mut file, bytes)?;
    Ok(range)
}

/// The highest page-aligned range of `length` bytes between `start` and `end`.
fn place(length: u64, start: u64, end: u64) -> Option<Range<u64>> {
    let first = end.checked_sub(length)? / PAGE * PAGE;
    (first >= start).then_some(first..first + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;

    #[test]
    fn the_range_is_page_aligned_and_as_high_as_possible() {
        assert_eq!(place(5000, MIB, 2 * MIB), Some(2 * MIB - 8192..2 * MIB - 8192 + 5000));
        assert_eq!(place(MIB, MIB, 2 * MIB), Some(MIB..2 * MIB));
    }

    #[test]
    fn an_oversized_range_does_not_fit() {
        assert_eq!(place(MIB + 1, MIB, 2 * MIB), None);
        assert_eq!(place(u64::MAX, MIB, 2 * MIB), None);
    }
}
