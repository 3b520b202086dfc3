//! The memory that a frontend keeps while its back end is away: which requests are in flight, and whether the
//! guest switched the write cache (vhost-user, "Inflight I/O tracking").
//!
//! A record per queue (see `kept.rs`), each on cache lines of its own, and in the end a line of ours. Made by us
//! and sealed, so that the frontend cannot take it away from under us.
//!
//! Records have room for the largest ring, whatever size the frontend names: under QEMU a guest may lay out larger
//! rings than the device was configured with, and SeaBIOS does.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{MmapRegion, VolatileMemory};

use super::disk::MAX_RING_SIZE;
use super::memory::map_shared;
use super::{Fault, host};
use crate::virtio::RecordPlace;

const LINE_BYTES: usize = 64;
/// What our own line begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"bulkhead");
/// Where in our line the write cache is.
const WRITE_CACHE: usize = 8;

/// See the module's documentation.
pub(super) struct Inflight {
    memory: Arc<MmapRegion>,
    queues: u16,
    /// Bytes from one record to the next.
    stride: usize,
    /// Where our line is, if it is there.
    line: Option<usize>,
}

/// What the guest asked of the write cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum WriteCache {
    /// Nothing: it is as the cache mode has it.
    #[default]
    Unasked = 0,
    /// To switch it off.
    Off = 1,
    /// To switch it on.
    On = 2,
}

fn record_bytes(queue_size: u16) -> usize {
    RecordPlace::bytes(queue_size).next_multiple_of(LINE_BYTES)
}

impl Inflight {
    /// New memory for so many queues, in a file to send to the frontend.
    ///
    /// # Errors
    ///
    /// The host refuses.
    pub(super) fn create(
        queues: u16,
        queue_size: u16,
        write_cache: WriteCache,
    ) -> Result<(VhostUserInflight, File), Fault> {
        let line = record_bytes(MAX_RING_SIZE) * usize::from(queues);
        let bytes = (line + LINE_BYTES) as u64;
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("requests in flight", flags)?);
            file.set_len(bytes)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok((file.try_clone()?, file))
        };
        let (copy, file) = make().map_err(host("make memory for requests in flight"))?;
        let memory = map_shared(copy, 0, bytes).map_err(Fault::Inflight)?;
        if let Ok(place) = memory.get_ref(line) {
            place.store(MAGIC);
        }
        let told = VhostUserInflight::new(bytes, 0, queues, queue_size);
        Self::of(memory, &told)?.remember(write_cache);
        Ok((told, file))
    }

    /// Memory that the frontend has kept.
    ///
    /// # Errors
    ///
    /// It cannot be what was sent to it.
    pub(super) fn open(told: &VhostUserInflight, file: File) -> Result<Self, Fault> {
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Err(Fault::Inflight("it is not sealed against truncation".into()));
        }
        let memory = map_shared(file, told.mmap_offset, told.mmap_size).map_err(Fault::Inflight)?;
        Self::of(memory, told)
    }

    fn of(memory: MmapRegion, told: &VhostUserInflight) -> Result<Self, Fault> {
        let queues = told.num_queues.max(1);
        let is_ours =
            |line: &usize| memory.get_ref::<u64>(*line).is_ok_and(|place| place.load() == MAGIC);
        let line = memory.size().checked_sub(LINE_BYTES).filter(is_ours);
        // Another back end's records are as large as the frontend says.
        let needed = record_bytes(told.queue_size);
        let stride = line.map_or(needed, |line| line / usize::from(queues));
        if stride < needed || memory.size() / usize::from(queues) < stride {
            return Err(Fault::Inflight("it is too small for its queues".into()));
        }
        Ok(Self { memory: Arc::new(memory), queues, stride, line })
    }

    /// The record of a queue of `size` entries.
    ///
    /// # Errors
    ///
    /// There is no room for it.
    pub(super) fn record(&self, queue: usize, size: u16) -> Result<RecordPlace, Fault> {
        let Self { queues, stride, .. } = *self;
        if queue < usize::from(queues) && RecordPlace::bytes(size) <= stride {
            return Ok(RecordPlace::new(Arc::clone(&self.memory), queue * stride));
        }
        Err(Fault::Inflight(format!(
            "it has {stride} bytes for each of {queues} rings, and none for ring {queue} of {size} entries"
        )))
    }

    /// What the guest asked of the write cache; `None` where that is not in here.
    pub(super) fn write_cache(&self) -> Option<WriteCache> {
        let asked: u8 = self.memory.get_ref(self.line? + WRITE_CACHE).ok()?.load();
        Some(match asked {
            0 => WriteCache::Unasked,
            2 => WriteCache::On,
            // What cannot be is answered with the safe one.
            _ => WriteCache::Off,
        })
    }

    /// Keeps what the guest asked of the write cache.
    pub(super) fn remember(&self, asked: WriteCache) {
        if let Some(line) = self.line
            && let Ok(place) = self.memory.get_ref(line + WRITE_CACHE)
        {
            place.store(asked as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_write_cache_is_remembered_with_the_memory() {
        let (told, file) = Inflight::create(4, 128, WriteCache::Unasked).unwrap();
        let kept = Inflight::open(&told, file.try_clone().unwrap()).unwrap();
        assert_eq!(kept.write_cache(), Some(WriteCache::Unasked));
        kept.remember(WriteCache::Off);
        let kept = Inflight::open(&told, file).unwrap();
        assert_eq!(kept.write_cache(), Some(WriteCache::Off));
    }

    #[test]
    fn there_is_a_record_for_each_ring_however_large_the_guest_makes_it() {
        let (told, file) = Inflight::create(4, 128, WriteCache::Unasked).unwrap();
        let kept = Inflight::open(&told, file).unwrap();
        assert!(kept.record(3, 128).is_ok() && kept.record(0, MAX_RING_SIZE).is_ok());
        assert!(kept.record(4, 128).is_err() && kept.record(0, 2 * MAX_RING_SIZE).is_err());
    }

    #[test]
    fn memory_that_cannot_be_ours_is_refused() {
        let (told, file) = Inflight::create(1, 128, WriteCache::On).unwrap();
        let refusal = |told: &VhostUserInflight, file: &File| {
            Inflight::open(told, file.try_clone().unwrap()).map(drop).unwrap_err().to_string()
        };
        for larger in [
            VhostUserInflight { num_queues: u16::MAX, ..told },
            VhostUserInflight { queue_size: 2048, ..told },
            VhostUserInflight { mmap_size: 64, ..told },
        ] {
            assert!(refusal(&larger, &file).contains("too small"));
        }
        let longer = VhostUserInflight { mmap_size: told.mmap_size + 4096, ..told };
        assert!(refusal(&longer, &file).contains("do not lie within"));
        let loose = tempfile::tempfile().unwrap();
        loose.set_len(1 << 20).unwrap();
        assert!(refusal(&told, &loose).contains("sealed"));
        assert!(file.set_len(0).is_err(), "the frontend cannot take it away");
    }
}
