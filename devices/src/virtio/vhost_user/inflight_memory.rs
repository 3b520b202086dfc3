//! The inflight memory, which the frontend keeps while its back end restarts: the requests in
//! flight and the guest's setting of the write cache (vhost-user, "Inflight I/O tracking").
//!
//! The memory has a record per queue (`inflight_record.rs`), each in its own cache lines, and a
//! trailer of one cache line for this program. It is created here and sealed, so that the frontend
//! cannot truncate it.
//!
//! Records have the size for the largest ring, whatever size the frontend specifies: under QEMU a
//! guest may use larger rings than configured, and SeaBIOS does.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{MmapRegion, VolatileMemory};

use super::fault::{Fault, host};
use super::memory_table::map_shared;
use crate::virtqueue::RecordRegion;

/// Maximum number of entries of a ring. Each may be a request in flight.
pub(super) const MAX_RING_SIZE: u16 = 1024;

/// Size of a cache line and of the trailer, in bytes.
const LINE_BYTES: usize = 64;
/// First word of the trailer.
const MAGIC: u64 = u64::from_le_bytes(*b"bulkhead");
/// Offset of the write cache setting in the trailer.
const WRITE_CACHE: usize = 8;

/// The mapped inflight memory.
pub(super) struct InflightMemory {
    memory: Arc<MmapRegion>,
    /// Number of records.
    queues: u16,
    /// Distance between two records, in bytes.
    stride: usize,
    /// Offset of the trailer; `None` if another back end created the memory.
    trailer: Option<usize>,
}

/// The guest's last write to the `writeback` field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum WritebackSetting {
    /// None: the cache mode applies.
    #[default]
    Unset = 0,
    /// Off.
    Off = 1,
    /// On.
    On = 2,
}

fn record_bytes(queue_size: u16) -> usize {
    RecordRegion::bytes(queue_size).next_multiple_of(LINE_BYTES)
}

impl InflightMemory {
    /// Creates memory for `queues` queues. Returns its description and its file for the frontend.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn create(
        queues: u16,
        queue_size: u16,
        writeback: WritebackSetting,
    ) -> Result<(VhostUserInflight, File), Fault> {
        let trailer = record_bytes(MAX_RING_SIZE) * usize::from(queues);
        let bytes = (trailer + LINE_BYTES) as u64;
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("inflight", flags)?);
            file.set_len(bytes)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok((file.try_clone()?, file))
        };
        let (copy, file) = make().map_err(host("create inflight memory"))?;
        let memory = map_shared(copy, 0, bytes).map_err(Fault::Inflight)?;
        if let Ok(magic) = memory.get_ref(trailer) {
            magic.store(MAGIC);
        }
        let description = VhostUserInflight::new(bytes, 0, queues, queue_size);
        Self::from_mapping(memory, &description)?.store_writeback(writeback);
        Ok((description, file))
    }

    /// Maps memory that the frontend kept.
    ///
    /// # Errors
    ///
    /// The memory is not sealed or too small.
    pub(super) fn open(description: &VhostUserInflight, file: File) -> Result<Self, Fault> {
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Err(Fault::Inflight("it is not sealed against truncation".into()));
        }
        let VhostUserInflight { mmap_offset, mmap_size, .. } = *description;
        let memory = map_shared(file, mmap_offset, mmap_size).map_err(Fault::Inflight)?;
        Self::from_mapping(memory, description)
    }

    fn from_mapping(memory: MmapRegion, description: &VhostUserInflight) -> Result<Self, Fault> {
        let queues = description.num_queues.max(1);
        let has_magic =
            |at: &usize| memory.get_ref::<u64>(*at).is_ok_and(|magic| magic.load() == MAGIC);
        let trailer = memory.size().checked_sub(LINE_BYTES).filter(has_magic);
        // Records of another back end have the size that the frontend specified.
        let needed = record_bytes(description.queue_size);
        let stride = trailer.map_or(needed, |trailer| trailer / usize::from(queues));
        if stride < needed || memory.size() / usize::from(queues) < stride {
            return Err(Fault::Inflight("it is too small for its queues".into()));
        }
        Ok(Self { memory: Arc::new(memory), queues, stride, trailer })
    }

    /// The record of a queue with `size` entries.
    ///
    /// # Errors
    ///
    /// The memory has no record for the queue, or a smaller one.
    pub(super) fn record(&self, queue: usize, size: u16) -> Result<RecordRegion, Fault> {
        let Self { queues, stride, .. } = *self;
        if queue < usize::from(queues) && RecordRegion::bytes(size) <= stride {
            return Ok(RecordRegion::new(Arc::clone(&self.memory), queue * stride));
        }
        let why = format!("its {queues} records of {stride} bytes do not fit");
        Err(Fault::Inflight(format!("{why} ring {queue} with {size} entries")))
    }

    /// The guest's write cache setting; `None` without a trailer.
    pub(super) fn writeback(&self) -> Option<WritebackSetting> {
        let value: u8 = self.memory.get_ref(self.trailer? + WRITE_CACHE).ok()?.load();
        Some(match value {
            0 => WritebackSetting::Unset,
            2 => WritebackSetting::On,
            // An invalid value is read as the safe setting.
            _ => WritebackSetting::Off,
        })
    }

    /// Stores the guest's write cache setting.
    pub(super) fn store_writeback(&self, writeback: WritebackSetting) {
        if let Some(trailer) = self.trailer
            && let Ok(field) = self.memory.get_ref(trailer + WRITE_CACHE)
        {
            field.store(writeback as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_write_cache_setting_survives() {
        let (description, file) = InflightMemory::create(4, 128, WritebackSetting::Unset).unwrap();
        let kept = InflightMemory::open(&description, file.try_clone().unwrap()).unwrap();
        assert_eq!(kept.writeback(), Some(WritebackSetting::Unset));
        kept.store_writeback(WritebackSetting::Off);
        let kept = InflightMemory::open(&description, file).unwrap();
        assert_eq!(kept.writeback(), Some(WritebackSetting::Off));
    }

    #[test]
    fn records_fit_the_largest_ring() {
        let (description, file) = InflightMemory::create(4, 128, WritebackSetting::Unset).unwrap();
        let kept = InflightMemory::open(&description, file).unwrap();
        assert!(kept.record(3, 128).is_ok() && kept.record(0, MAX_RING_SIZE).is_ok());
        assert!(kept.record(4, 128).is_err() && kept.record(0, 2 * MAX_RING_SIZE).is_err());
    }

    #[test]
    fn foreign_memory_is_refused() {
        let (description, file) = InflightMemory::create(1, 128, WritebackSetting::On).unwrap();
        let refusal = |description: &VhostUserInflight, file: &File| {
            InflightMemory::open(description, file.try_clone().unwrap())
                .map(drop)
                .unwrap_err()
                .to_string()
        };
        for larger in [
            VhostUserInflight { num_queues: u16::MAX, ..description },
            VhostUserInflight { queue_size: 2048, ..description },
            VhostUserInflight { mmap_size: 64, ..description },
        ] {
            assert!(refusal(&larger, &file).contains("too small"));
        }
        let longer = VhostUserInflight { mmap_size: description.mmap_size + 4096, ..description };
        assert!(refusal(&longer, &file).contains("are not within the file"));
        let loose = tempfile::tempfile().unwrap();
        loose.set_len(1 << 20).unwrap();
        assert!(refusal(&description, &loose).contains("sealed"));
        assert!(file.set_len(0).is_err(), "the frontend cannot truncate it");
    }
}
