//! Guest memory: claimed, populated and only then given to the guest.
//!
//! Runs on the control thread before any vCPU exists. Populating may take long, so it goes chunk by
//! chunk and asks in between whether to go on.

use std::fs;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use devices::GuestMemory;
use rustix::mm::Advice;
use thiserror::Error;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::layout::{self, MIB};

/// How much is populated between two looks at the signals.
const CHUNK: u64 = 64 * MIB;
/// How long populating may take before it is worth a line.
const SILENCE: Duration = Duration::from_secs(2);

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The address space could not be had.
    #[error("cannot reserve {} MiB of address space for guest memory", .0 / MIB)]
    Map(u64, #[source] vm_memory::mmap::FromRangesError),
    /// The host has no memory to give.
    #[error(
        "cannot claim guest memory: {asked} MiB asked for, {claimed} MiB claimed, \
         {available} MiB available on the host; lower machine.memory or free memory"
    )]
    Populate { asked: u64, claimed: u64, available: String, source: io::Error },
    /// A signal came first.
    #[error("stopped while claiming guest memory")]
    Interrupted,
}

/// Guest memory of the given size, all of it backed by the host.
///
/// # Errors
///
/// When the host does not have it, or when `interrupted` says to stop.
pub(crate) fn claim(
    memory_bytes: u64,
    mut interrupted: impl FnMut() -> bool,
) -> Result<GuestMemory, Error> {
    let ranges: Vec<_> = layout::ram(memory_bytes)
        .into_iter()
        .map(|Range { start, end }| (GuestAddress(start), usize::try_from(end - start)))
        .map(|(start, length)| (start, length.unwrap_or(usize::MAX)))
        .collect();
    let memory =
        GuestMemory::from_ranges(&ranges).map_err(|error| Error::Map(memory_bytes, error))?;
    populate(&memory, memory_bytes, &mut interrupted)?;
    Ok(memory)
}

fn populate(
    memory: &GuestMemory,
    memory_bytes: u64,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<(), Error> {
    let mut progress = Progress::new(memory_bytes);
    for region in memory.iter() {
        prefer_huge_pages(region);
        let mut offset = 0;
        while offset < region.len() {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let length = CHUNK.min(region.len() - offset);
            populate_chunk(region, offset, length).map_err(|source| Error::Populate {
                asked: memory_bytes / MIB,
                claimed: progress.done / MIB,
                available: available_mib(),
                source,
            })?;
            offset += length;
            progress.advance(length);
        }
        tracing::debug!(
            start = region.start_addr().raw_value(),
            length = region.len(),
            "guest memory"
        );
    }
    Ok(())
}

/// Huge pages make translation cheaper; a host without them works as well.
fn prefer_huge_pages(region: &MmapRegion) {
    // SAFETY: the range is exactly the mapping `region` owns; the advice changes no contents.
    let advised = unsafe {
        rustix::mm::madvise(region.as_ptr().cast(), region.size(), Advice::LinuxHugepage)
    };
    if let Err(error) = advised {
        tracing::info!(%error, "no huge pages for guest memory");
    }
}

fn populate_chunk(region: &MmapRegion, offset: u64, length: u64) -> io::Result<()> {
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: `populate` keeps offset + length within the mapping that `region` owns, and the call
    // only makes pages present, it changes no contents.
    let populated =
        unsafe { rustix::mm::madvise(start.cast(), length, Advice::LinuxPopulateWrite) };
    populated.map_err(io::Error::from)
}

/// What the host still has, as the user would look it up.
fn available_mib() -> String {
    let from_meminfo = || {
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((kib / 1024).to_string())
    };
    from_meminfo().unwrap_or_else(|| "an unknown number of".to_owned())
}

/// Tells how far populating got, once it takes long enough to wonder.
struct Progress {
    total: u64,
    done: u64,
    last_line: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, done: 0, last_line: Instant::now() }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.last_line.elapsed() >= SILENCE && self.done < self.total {
            self.last_line = Instant::now();
            eprintln!("claimed {} of {} MiB of guest memory", self.done / MIB, self.total / MIB);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_memory_is_resident() {
        let memory = claim(16 * MIB, || false).unwrap();
        let region = memory.iter().next().unwrap();
        let mut resident = vec![0_u8; region.size() / 4096];
        // SAFETY: `resident` has one byte for each page of the mapping.
        let answer =
            unsafe { libc::mincore(region.as_ptr().cast(), region.size(), resident.as_mut_ptr()) };
        assert_eq!(answer, 0);
        assert!(resident.iter().all(|page| page & 1 == 1));
    }

    #[test]
    fn a_signal_ends_the_claim() {
        assert!(matches!(claim(16 * MIB, || true), Err(Error::Interrupted)));
    }

    #[test]
    fn too_much_memory_says_how_much_was_asked_for() {
        let error = claim(1 << 50, || false).unwrap_err();
        assert!(error.to_string().contains("1073741824 MiB"), "{error}");
    }
}
