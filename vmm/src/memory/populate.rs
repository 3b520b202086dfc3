//! Allocates all pages of guest memory before the guest starts.
//!
//! This may take long. It proceeds in chunks, and checks between them whether to stop.

use std::io;
use std::time::{Duration, Instant};

use devices::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::available::AvailableMemory;
use super::error::MemoryError;
use crate::layout::MIB;
use crate::log;
use crate::sys::{self, MemoryAdvice};

/// Bytes between two checks for a signal.
const CHUNK: u64 = 64 * MIB;
/// Interval of progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Allocates every page of `memory`, unless `interrupted` returns true.
pub(super) fn populate(
    memory: &GuestMemory,
    memory_bytes: u64,
    mut interrupted: impl FnMut() -> bool,
) -> Result<(), MemoryError> {
    let mut progress = PopulateProgress::new(memory_bytes);
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            if interrupted() {
                return Err(MemoryError::Interrupted);
            }
            let length = CHUNK.min(region.len() - offset);
            populate_chunk(region, offset, length).map_err(|source| MemoryError::Populate {
                requested_mib: memory_bytes / MIB,
                allocated_mib: progress.done / MIB,
                available_mib: available_mib(),
                source,
            })?;
            offset += length;
            progress.advance(length);
        }
        let (start, length) = (region.start_addr().raw_value(), region.len());
        tracing::debug!(start, length, "guest memory");
    }
    Ok(())
}

fn populate_chunk(region: &MmapRegion, offset: u64, length: u64) -> io::Result<()> {
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    sys::advise(region, offset, length, MemoryAdvice::Populate)
}

fn available_mib() -> String {
    let available = AvailableMemory::probe().least_bytes();
    available.map_or_else(|| "unknown".to_owned(), |bytes| (bytes / MIB).to_string())
}

/// Reports progress to the user, once it takes long.
struct PopulateProgress {
    total: u64,
    done: u64,
    last_message: Instant,
}

impl PopulateProgress {
    fn new(total: u64) -> Self {
        Self { total, done: 0, last_message: Instant::now() }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.last_message.elapsed() >= PROGRESS_INTERVAL && self.done < self.total {
            self.last_message = Instant::now();
            let (done, total) = (self.done / MIB, self.total / MIB);
            log::print(format_args!("allocated {done} of {total} MiB of guest memory"));
        }
    }
}
