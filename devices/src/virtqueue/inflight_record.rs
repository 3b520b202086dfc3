//! State of a queue that outlives its worker: the ring position and, if a frontend keeps one, the
//! record of chains in flight (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! The record is in shared memory that survives a kill of this process. The order of its updates
//! ensures that a kill at any point neither loses a chain nor returns it twice. The frontend may
//! corrupt the record: every value is checked, and only the frontend's own guest can suffer.

use std::sync::Arc;

use vm_memory::{AtomicAccess, MmapRegion, VolatileMemory};

/// The position at which a worker stopped and another one resumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Next entry of the available ring to take.
    pub next_available: u16,
    /// Heads of the chains taken and not returned, in the order they were taken.
    pub owed: Vec<u16>,
}

/// Why a record does not belong to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record exceeds its memory.
    #[error("it exceeds its memory")]
    Bounds,
    /// The layout has an unknown version.
    #[error("it has version {0}, only version 1 is supported")]
    Version(u16),
    /// The record belongs to a queue of another size.
    #[error("it belongs to a queue with {0} entries")]
    Size(u16),
    /// The driver saw more chains returned since the last update than the queue holds.
    #[error("its used index {recorded} does not match that of the ring, {used}")]
    UsedIndex {
        /// The index in the record.
        recorded: u16,
        /// The index in the ring.
        used: u16,
    },
    /// The list of the last batch contains a head outside of the queue.
    #[error("it contains the head {0}, which the queue does not have")]
    Head(u16),
}

/// Offsets in `QueueRegionSplit`, which ends with an array of `DescStateSplit`.
const VERSION: usize = 8;
const SIZE: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;
const STATES: usize = 16;
/// Size of a `DescStateSplit` in bytes, and offsets in it.
const STATE_BYTES: usize = 16;
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The region of shared memory that holds one queue's record.
#[derive(Clone, Debug)]
pub struct RecordRegion {
    memory: Arc<MmapRegion>,
    /// Offset of the record in `memory`, in bytes.
    offset: usize,
}

impl RecordRegion {
    /// The region that starts at `offset` bytes.
    #[must_use]
    pub fn new(memory: Arc<MmapRegion>, offset: usize) -> Self {
        Self { memory, offset }
    }

    /// Length of the record of a queue with `size` entries, in bytes.
    #[must_use]
    pub fn bytes(size: u16) -> usize {
        STATES + STATE_BYTES * usize::from(size)
    }

    fn get<T: AtomicAccess>(&self, at: usize) -> Option<T> {
        Some(self.memory.get_ref(self.offset.checked_add(at)?).ok()?.load())
    }

    fn put<T: AtomicAccess>(&self, at: usize, value: T) {
        // `InflightRecord::open` checked that the whole record is in the memory.
        if let Some(at) = self.offset.checked_add(at)
            && let Ok(field) = self.memory.get_ref(at)
        {
            field.store(value);
        }
    }
}

/// The record of a queue in use. Updated by the queue's worker only.
#[derive(Debug)]
pub(super) struct InflightRecord {
    region: RecordRegion,
    /// Number of entries of the queue.
    size: u16,
    /// Sequence number of the next chain taken.
    counter: u64,
    /// Number of chains returned since the used index was last published.
    batch: u16,
}

impl InflightRecord {
    /// Opens the record of a queue with `size` entries and the given used index. Returns it with
    /// the heads of the chains in flight, oldest first. An unused record is initialised.
    ///
    /// # Errors
    ///
    /// The record does not belong to this queue.
    pub(super) fn open(
        region: &RecordRegion,
        size: u16,
        used: u16,
    ) -> Result<(Self, Vec<u16>), RecordError> {
        let bytes = RecordRegion::bytes(size);
        let end = region.offset.checked_add(bytes).ok_or(RecordError::Bounds)?;
        if end > region.memory.size() {
            return Err(RecordError::Bounds);
        }
        let get = |at| region.get::<u16>(at).ok_or(RecordError::Bounds);
        let mut record = Self { region: region.clone(), size, counter: 0, batch: 0 };
        match (get(VERSION)?, get(SIZE)?) {
            (0, _) => {
                region.put(USED_INDEX, used);
                region.put(SIZE, size);
                region.put(VERSION, 1_u16);
            }
            (1, recorded) if recorded == size => record.recover(used)?,
            (1, recorded) => return Err(RecordError::Size(recorded)),
            (version, _) => return Err(RecordError::Version(version)),
        }
        let in_flight = record.in_flight();
        Ok((record, in_flight))
    }

    /// Completes the batch of a worker that was killed between publishing the used index and
    /// [`InflightRecord::complete_batch`].
    fn recover(&mut self, used: u16) -> Result<(), RecordError> {
        let recorded: u16 = self.region.get(USED_INDEX).ok_or(RecordError::Bounds)?;
        self.batch = used.wrapping_sub(recorded);
        if self.batch > self.size {
            return Err(RecordError::UsedIndex { recorded, used });
        }
        let last: u16 = self.region.get(LAST_BATCH_HEAD).unwrap_or(0);
        if self.batch > 0 && last >= self.size {
            return Err(RecordError::Head(last));
        }
        self.complete_batch(used);
        Ok(())
    }

    /// Heads of the chains in flight, oldest first.
    fn in_flight(&mut self) -> Vec<u16> {
        let mut in_flight: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.region.get::<u8>(Self::state(*head) + IN_FLIGHT) == Some(1))
            .map(|head| (self.region.get(Self::state(head) + COUNTER).unwrap_or(0), head))
            .collect();
        in_flight.sort_unstable();
        self.counter = in_flight.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        in_flight.into_iter().map(|(_, head)| head).collect()
    }

    /// Offset of the state of a descriptor.
    fn state(head: u16) -> usize {
        STATES + STATE_BYTES * usize::from(head)
    }

    /// Records a chain taken from the available ring.
    pub(super) fn mark_in_flight(&mut self, head: u16) {
        self.region.put(Self::state(head) + COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.region.put(Self::state(head) + IN_FLIGHT, 1_u8);
    }

    /// Records a chain written to the used ring before the used index covers it.
    pub(super) fn add_to_batch(&mut self, head: u16) {
        let last: u16 = self.region.get(LAST_BATCH_HEAD).unwrap_or(0);
        self.region.put(Self::state(head) + NEXT, last);
        self.region.put(LAST_BATCH_HEAD, head);
        self.batch = self.batch.wrapping_add(1);
    }

    /// Clears the chains of the batch after the used index `used` was published, which covers them.
    pub(super) fn complete_batch(&mut self, used: u16) {
        let mut head: u16 = self.region.get(LAST_BATCH_HEAD).unwrap_or(0);
        for _ in 0..std::mem::take(&mut self.batch) {
            if head >= self.size {
                break;
            }
            self.region.put(Self::state(head) + IN_FLIGHT, 0_u8);
            head = self.region.get(Self::state(head) + NEXT).unwrap_or(0);
        }
        self.region.put(USED_INDEX, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_8: u16 = 8;

    fn region() -> RecordRegion {
        RecordRegion::new(Arc::new(MmapRegion::new(4096).unwrap()), 64)
    }

    fn open(region: &RecordRegion, used: u16) -> (InflightRecord, Vec<u16>) {
        InflightRecord::open(region, SIZE_8, used).unwrap()
    }

    #[test]
    fn chains_in_flight_are_owed_in_the_order_taken() {
        let region = region();
        let (mut record, owed) = open(&region, 65_530);
        assert!(owed.is_empty());
        for head in [5, 2, 7, 0] {
            record.mark_in_flight(head);
        }
        record.add_to_batch(2);
        record.complete_batch(65_531);
        assert_eq!(open(&region, 65_531).1, [5, 7, 0]);
        let (mut record, _) = open(&region, 65_531);
        record.mark_in_flight(2);
        assert_eq!(open(&region, 65_531).1, [5, 7, 0, 2], "sequence numbers continue");
    }

    /// A kill between used entries and used index: the batch is not visible to the driver.
    #[test]
    fn an_unpublished_batch_is_owed() {
        let region = region();
        let (mut record, _) = open(&region, 0);
        [1, 2, 3].into_iter().for_each(|head| record.mark_in_flight(head));
        record.add_to_batch(3);
        record.add_to_batch(1);
        assert_eq!(open(&region, 0).1, [1, 2, 3]);
    }

    /// A kill between the used index and the update of the record: the driver has the batch.
    #[test]
    fn a_published_batch_is_not_owed() {
        let region = region();
        let (mut record, _) = open(&region, 0);
        [1, 2, 3, 4].into_iter().for_each(|head| record.mark_in_flight(head));
        record.add_to_batch(4);
        record.complete_batch(1);
        record.add_to_batch(3);
        record.add_to_batch(1);
        assert_eq!(open(&region, 3).1, [2]);
        assert_eq!(open(&region, 3).1, [2], "opening it again changes nothing");
    }

    #[test]
    fn records_of_other_queues_are_refused() {
        let region = region();
        drop(open(&region, 10));
        let open = |size, used| InflightRecord::open(&region, size, used).map(drop).unwrap_err();
        assert_eq!(open(4, 10), RecordError::Size(8));
        assert_eq!(open(8, 19), RecordError::UsedIndex { recorded: 10, used: 19 });
        assert_eq!(open(8, 9), RecordError::UsedIndex { recorded: 10, used: 9 });
        region.put(LAST_BATCH_HEAD, 8_u16);
        assert_eq!(open(8, 11), RecordError::Head(8));
        region.put(VERSION, 2_u16);
        assert_eq!(open(8, 10), RecordError::Version(2));
        let short = RecordRegion::new(Arc::new(MmapRegion::new(4096).unwrap()), 4096 - 64);
        assert_eq!(InflightRecord::open(&short, 8, 0).map(drop), Err(RecordError::Bounds));
    }

    /// A corrupt record is not followed beyond its queue, and every loop over it ends.
    #[test]
    fn a_corrupt_batch_list_is_followed_within_the_queue() {
        let region = region();
        let (mut record, _) = open(&region, 0);
        [0, 1].into_iter().for_each(|head| record.mark_in_flight(head));
        record.add_to_batch(0);
        record.add_to_batch(1);
        region.put(InflightRecord::state(1) + NEXT, 60_000_u16);
        record.complete_batch(2);
        assert_eq!(open(&region, 2).1, [0], "the frontend lost track of its own chain");
    }
}
