//! Anonymous memory: private pages of the host, in huge pages where possible.

use std::ops::Range;

use devices::{GuestMemory, isolate};
use vm_memory::{GuestAddress, GuestMemoryBackend, MmapRegion};

use super::error::MemoryError;
use crate::layout;
use crate::sys::{self, MemoryAdvice};

/// Maps guest memory. No page is allocated yet.
pub(super) fn map(memory_bytes: u64) -> Result<GuestMemory, MemoryError> {
    let ranges: Vec<_> = layout::ram(memory_bytes)
        .into_iter()
        .map(|Range { start, end }| (GuestAddress(start), usize::try_from(end - start)))
        .map(|(start, length)| (start, length.unwrap_or(usize::MAX)))
        .collect();
    let memory =
        GuestMemory::from_ranges(&ranges).map_err(|error| MemoryError::Map(memory_bytes, error))?;
    for region in memory.iter() {
        isolate(region).map_err(MemoryError::Isolate)?;
        prefer_huge_pages(region);
    }
    Ok(memory)
}

/// Huge pages make address translation cheaper. Without them the guest is only slower.
fn prefer_huge_pages(region: &MmapRegion) {
    if let Err(error) = sys::advise(region, 0, region.size(), MemoryAdvice::HugePages) {
        tracing::info!(%error, "no huge pages for guest memory");
    }
}
