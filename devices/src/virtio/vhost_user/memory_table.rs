//! The frontend's memory table: the guest memory that it shares, and its own addresses of it.
//!
//! A frontend that truncates the file behind a region removes pages from our mapping: the next
//! access ends this process with SIGBUS, as for every back end. A sealed file cannot be truncated;
//! other files are noted in the log.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::fault::Fault;
use crate::GuestMemory;
use crate::guest_memory::isolate;

/// Maximum number of regions. Each region after the first costs a comparison per buffer.
pub(super) const MAX_REGIONS: usize = 64;

/// A mapped region.
#[derive(Clone)]
struct TableRegion {
    /// Guest-physical address.
    guest: u64,
    /// Address in the frontend.
    user: u64,
    /// Length in bytes.
    len: u64,
    mapped: Arc<GuestRegionMmap>,
}

/// The regions of a frontend.
#[derive(Clone, Default)]
pub(super) struct MemoryTable {
    /// Sorted by guest-physical address.
    regions: Vec<TableRegion>,
    memory: GuestMemory,
}

impl MemoryTable {
    /// A table of `regions`, each with its file.
    ///
    /// # Errors
    ///
    /// A region cannot be mapped, or two regions overlap.
    pub(super) fn new(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, Fault> {
        let regions = regions.iter().zip(files).map(|(region, file)| map(region, file));
        Self::from_regions(regions.collect::<Result<_, _>>()?)
    }

    /// The table with an additional region.
    ///
    /// # Errors
    ///
    /// The region cannot be mapped or overlaps another one, or the table is full.
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File) -> Result<Self, Fault> {
        let mut regions = self.regions.clone();
        regions.push(map(region, file)?);
        Self::from_regions(regions)
    }

    /// The table without a region.
    ///
    /// # Errors
    ///
    /// The table does not have the region.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Self, Fault> {
        let wanted = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let is_wanted = |held: &TableRegion| (held.guest, held.user, held.len) == wanted;
        let mut regions = self.regions.clone();
        let Some(at) = regions.iter().position(is_wanted) else {
            let why = "the region to remove does not exist".into();
            return Err(Fault::Memory { at: region.guest_phys_addr, why });
        };
        regions.remove(at);
        Self::from_regions(regions)
    }

    fn from_regions(mut regions: Vec<TableRegion>) -> Result<Self, Fault> {
        if regions.len() > MAX_REGIONS {
            return Err(Fault::Value {
                what: "the number of memory regions",
                value: regions.len() as u64,
            });
        }
        regions.sort_by_key(|region| region.guest);
        let Some(first) = regions.first() else { return Ok(Self::default()) };
        let at = first.guest;
        let mapped = regions.iter().map(|region| Arc::clone(&region.mapped)).collect();
        let memory = GuestMemory::from_arc_regions(mapped)
            .map_err(|error| Fault::Memory { at, why: error.to_string() })?;
        Ok(Self { regions, memory })
    }

    /// All regions as guest memory.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The guest-physical address of an address in the frontend.
    ///
    /// # Errors
    ///
    /// [`Fault::Address`].
    pub(super) fn guest_address(&self, user: u64) -> Result<u64, Fault> {
        let within = |region: &TableRegion| {
            let offset = user.checked_sub(region.user).filter(|offset| *offset < region.len)?;
            region.guest.checked_add(offset)
        };
        self.regions.iter().find_map(within).ok_or(Fault::Address(user))
    }
}

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<TableRegion, Fault> {
    // By value: the message is packed.
    let VhostUserMemoryRegion { guest_phys_addr: guest, memory_size: len, user_addr: user, .. } =
        *region;
    let refused = |why: String| Fault::Memory { at: guest, why };
    let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let mapping = map_shared(file, region.mmap_offset, len).map_err(refused)?;
    let mapped = GuestRegionMmap::new(mapping, GuestAddress(guest))
        .ok_or_else(|| refused("it exceeds the address space".into()))?;
    tracing::debug!(target: "vhost-user", guest, len, sealed, "guest memory");
    if !sealed {
        tracing::info!(
            target: "vhost-user",
            "guest memory at {guest:#x} is not sealed: this process ends if the frontend \
             truncates it"
        );
    }
    Ok(TableRegion { guest, user, len, mapped: Arc::new(mapped) })
}

/// Maps `len` bytes at `offset` of a file that the frontend sent. All of them must exist: the
/// kernel maps bytes beyond the end of a file, but an access to them ends the process.
///
/// # Errors
///
/// The reason why the bytes cannot be mapped.
pub(super) fn map_shared(file: File, offset: u64, len: u64) -> Result<MmapRegion, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let end = offset.checked_add(len).filter(|end| metadata.is_file() && *end <= metadata.len());
    let (Some(_), Ok(bytes)) = (end, usize::try_from(len)) else {
        return Err(format!("{len} bytes at {offset:#x} are not within the file"));
    };
    let region = MmapRegion::from_file(FileOffset::new(file, offset), bytes);
    let region = region.map_err(|error| error.to_string())?;
    isolate(&region).map_err(|error| error.to_string())?;
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, len: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, len, user, offset)
    }

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn table(regions: &[VhostUserMemoryRegion]) -> Result<MemoryTable, Fault> {
        MemoryTable::new(regions, regions.iter().map(|_| file(1 << 20)).collect())
    }

    #[test]
    fn frontend_addresses_translate_to_guest_addresses() {
        let low = region(0, 0x10_000, 0x7f00_0000_0000, 0);
        let high = region(1 << 32, 0x10_000, 0x7f00_0001_0000, 0x10_000);
        let whole = table(&[high, low]).unwrap();
        assert_eq!(whole.guest_address(0x7f00_0000_ffff).unwrap(), 0xffff);
        assert_eq!(whole.guest_address(0x7f00_0001_0000).unwrap(), 1 << 32);
        for outside in [0, 0x7eff_ffff_ffff, 0x7f00_0002_0000, u64::MAX] {
            assert!(whole.guest_address(outside).is_err(), "{outside:#x}");
        }
        let part = whole.without(&high).unwrap();
        assert!(part.guest_address(0x7f00_0001_0000).is_err());
        assert!(part.without(&high).is_err());
        assert!(part.with(&high, file(1 << 20)).unwrap().guest_address(0x7f00_0001_0000).is_ok());
    }

    #[test]
    fn memory_beyond_the_file_is_refused() {
        let refused = |region: VhostUserMemoryRegion| table(&[region]).map(drop).unwrap_err();
        let beyond = region(0, 0x1000, 0, 1 << 20);
        assert!(refused(beyond).to_string().contains("are not within the file"));
        refused(region(0, (1 << 20) + 1, 0, 0));
        refused(region(0, 0x1000, 0, u64::MAX - 0xfff));
        refused(region(0, 0x1000, 0, 1));
        let device =
            MemoryTable::new(&[region(0, 0x1000, 0, 0)], vec![File::open("/dev/zero").unwrap()]);
        assert!(device.is_err());
        let unwritable = vec![File::open("/proc/self/exe").unwrap()];
        assert!(MemoryTable::new(&[region(0, 0x1000, 0, 0)], unwritable).is_err());
        assert!(table(&[region(0, 0x2000, 0, 0), region(0x1000, 0x1000, 0x2000, 0)]).is_err());
    }

    #[test]
    fn the_number_of_regions_is_bounded() {
        let regions: Vec<_> = (0..65).map(|at| region(at << 12, 0x1000, at << 12, 0)).collect();
        assert!(table(&regions[..64]).is_ok());
        assert!(table(&regions).is_err());
    }
}
