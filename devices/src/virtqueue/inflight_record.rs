//! What outlives the worker of a queue: how far it came, and, where a frontend keeps it, which chains the
//! device owes (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! A [`Record`] lies in memory that a frontend keeps when this process is killed. Each step is written in an order that
//! leaves no moment at which a chain would be lost or returned twice. The frontend may write there too: what is read
//! is checked, and what it can corrupt is its own.

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::{AtomicAccess, MmapRegion, VolatileMemory};

/// Where a worker stopped, and the next one goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The next entry of the available ring to take.
    pub next_available: u16,
    /// Heads of the chains taken and not given back, in the order they were taken.
    pub owed: Vec<u16>,
}

/// Why a record cannot be the ring's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It lies outside of its memory.
    #[error("it lies outside of its memory")]
    Bounds,
    /// Another layout.
    #[error("it has version {0}, and 1 is known")]
    Version(u16),
    /// It was made for another queue.
    #[error("it is of a queue with {0} entries")]
    Size(u16),
    /// The driver saw more chains come back since than the queue holds.
    #[error("its used index {recorded} is not that of the ring, {used}")]
    UsedIndex {
        /// As recorded.
        recorded: u16,
        /// In the ring.
        used: u16,
    },
    /// The list of the last batch leads out of the queue.
    #[error("it names the head {0}, which the queue does not have")]
    Head(u16),
}

/// Offsets in `QueueRegionSplit` and, from [`STATES`], in each `DescStateSplit`.
const VERSION: usize = 8;
const SIZE: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;
const STATES: usize = 16;
const STATE_BYTES: usize = 16;
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// One queue's part of the memory that a frontend keeps.
#[derive(Clone, Debug)]
pub struct RecordPlace {
    memory: Arc<MmapRegion>,
    offset: usize,
}

impl RecordPlace {
    /// The part that begins at `offset`.
    #[must_use]
    pub fn new(memory: Arc<MmapRegion>, offset: usize) -> Self {
        Self { memory, offset }
    }

    /// Bytes of the record of a queue of `size` entries.
    #[must_use]
    pub fn bytes(size: u16) -> usize {
        STATES + STATE_BYTES * usize::from(size)
    }

    fn get<T: AtomicAccess>(&self, at: usize) -> Option<T> {
        Some(self.memory.get_ref(self.offset.checked_add(at)?).ok()?.load())
    }

    fn put<T: AtomicAccess>(&self, at: usize, value: T) {
        // The whole record was seen to lie in the memory when it was opened.
        if let Some(at) = self.offset.checked_add(at)
            && let Ok(place) = self.memory.get_ref(at)
        {
            place.store(value);
        }
    }
}

/// The record of one queue in use.
#[derive(Debug)]
pub(crate) struct Record {
    place: RecordPlace,
    size: u16,
    /// What the next chain taken is numbered with.
    counter: u64,
    /// Chains given back that the driver does not see yet.
    batch: u16,
}

impl Record {
    /// Opens the record of a queue of `size` entries whose used index is `used`, and returns with it the
    /// heads of the chains owed, oldest first. A record that was never used becomes this queue's.
    ///
    /// # Errors
    ///
    /// It cannot be this queue's.
    pub(crate) fn open(
        place: &RecordPlace,
        size: u16,
        used: u16,
    ) -> Result<(Self, Vec<u16>), RecordError> {
        let end = place.offset.checked_add(RecordPlace::bytes(size)).ok_or(RecordError::Bounds)?;
        if end > place.memory.size() {
            return Err(RecordError::Bounds);
        }
        let get = |at| place.get::<u16>(at).ok_or(RecordError::Bounds);
        let mut record = Self { place: place.clone(), size, counter: 0, batch: 0 };
        match (get(VERSION)?, get(SIZE)?) {
            (0, _) => {
                place.put(USED_INDEX, used);
                place.put(SIZE, size);
                place.put(VERSION, 1_u16);
            }
            (1, recorded) if recorded == size => record.catch_up(used)?,
            (1, recorded) => return Err(RecordError::Size(recorded)),
            (version, _) => return Err(RecordError::Version(version)),
        }
        let owed = record.owed();
        Ok((record, owed))
    }

    /// Completes what an end in the middle of [`Record::settle`] left half done.
    fn catch_up(&mut self, used: u16) -> Result<(), RecordError> {
        let recorded: u16 = self.place.get(USED_INDEX).ok_or(RecordError::Bounds)?;
        self.batch = used.wrapping_sub(recorded);
        if self.batch > self.size {
            return Err(RecordError::UsedIndex { recorded, used });
        }
        let last: u16 = self.place.get(LAST_BATCH_HEAD).unwrap_or(0);
        if self.batch > 0 && last >= self.size {
            return Err(RecordError::Head(last));
        }
        self.settle(used);
        Ok(())
    }

    /// The chains in flight, oldest first.
    fn owed(&mut self) -> Vec<u16> {
        let mut owed: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.place.get::<u8>(Self::state(*head) + IN_FLIGHT) == Some(1))
            .map(|head| (self.place.get(Self::state(head) + COUNTER).unwrap_or(0), head))
            .collect();
        owed.sort_unstable();
        self.counter = owed.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        owed.into_iter().map(|(_, head)| head).collect()
    }

    fn state(head: u16) -> usize {
        STATES + STATE_BYTES * usize::from(head)
    }

    /// A chain was taken from the available ring.
    pub(crate) fn take(&mut self, head: u16) {
        self.place.put(Self::state(head) + COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.place.put(Self::state(head) + IN_FLIGHT, 1_u8);
    }

    /// A chain was written into the used ring, whose index does not show it yet.
    pub(crate) fn give_back(&mut self, head: u16) {
        let last: u16 = self.place.get(LAST_BATCH_HEAD).unwrap_or(0);
        self.place.put(Self::state(head) + NEXT, last);
        self.place.put(LAST_BATCH_HEAD, head);
        self.batch = self.batch.wrapping_add(1);
    }

    /// The used ring's index became `used`, which shows the driver the whole batch.
    pub(crate) fn settle(&mut self, used: u16) {
        let mut head: u16 = self.place.get(LAST_BATCH_HEAD).unwrap_or(0);
        for _ in 0..std::mem::take(&mut self.batch) {
            if head >= self.size {
                break;
            }
            self.place.put(Self::state(head) + IN_FLIGHT, 0_u8);
            head = self.place.get(Self::state(head) + NEXT).unwrap_or(0);
        }
        self.place.put(USED_INDEX, used);
    }
}

/// What a queue that goes on has to remember: chains to start again, and the record of all in flight.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Chains that an earlier worker took and did not give back, oldest first.
    pub(crate) owed: VecDeque<u16>,
    pub(crate) record: Option<Record>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_8: u16 = 8;

    fn place() -> RecordPlace {
        RecordPlace::new(Arc::new(MmapRegion::new(4096).unwrap()), 64)
    }

    fn open(place: &RecordPlace, used: u16) -> (Record, Vec<u16>) {
        Record::open(place, SIZE_8, used).unwrap()
    }

    #[test]
    fn chains_in_flight_are_owed_in_the_order_they_were_taken() {
        let place = place();
        let (mut record, owed) = open(&place, 65_530);
        assert!(owed.is_empty());
        for head in [5, 2, 7, 0] {
            record.take(head);
        }
        record.give_back(2);
        record.settle(65_531);
        assert_eq!(open(&place, 65_531).1, [5, 7, 0]);
        let (mut record, _) = open(&place, 65_531);
        record.take(2);
        assert_eq!(open(&place, 65_531).1, [5, 7, 0, 2], "numbers go on");
    }

    /// Killed between the used entries and the used index: the driver sees none of the batch, so all of
    /// it is owed.
    #[test]
    fn a_batch_that_the_driver_never_saw_is_owed() {
        let place = place();
        let (mut record, _) = open(&place, 0);
        [1, 2, 3].into_iter().for_each(|head| record.take(head));
        record.give_back(3);
        record.give_back(1);
        assert_eq!(open(&place, 0).1, [1, 2, 3]);
    }

    /// Killed between the used index and the end of its accounts: the driver has the whole batch, so
    /// none of it is owed.
    #[test]
    fn a_batch_that_the_driver_saw_is_not_owed_again() {
        let place = place();
        let (mut record, _) = open(&place, 0);
        [1, 2, 3, 4].into_iter().for_each(|head| record.take(head));
        record.give_back(4);
        record.settle(1);
        record.give_back(3);
        record.give_back(1);
        assert_eq!(open(&place, 3).1, [2]);
        assert_eq!(open(&place, 3).1, [2], "and stays so");
    }

    #[test]
    fn a_record_that_is_not_the_rings_is_refused() {
        let place = place();
        drop(open(&place, 10));
        let open = |size, used| Record::open(&place, size, used).map(drop).unwrap_err();
        assert_eq!(open(4, 10), RecordError::Size(8));
        assert_eq!(open(8, 19), RecordError::UsedIndex { recorded: 10, used: 19 });
        assert_eq!(open(8, 9), RecordError::UsedIndex { recorded: 10, used: 9 });
        place.put(LAST_BATCH_HEAD, 8_u16);
        assert_eq!(open(8, 11), RecordError::Head(8));
        place.put(VERSION, 2_u16);
        assert_eq!(open(8, 10), RecordError::Version(2));
        let short = RecordPlace::new(Arc::new(MmapRegion::new(4096).unwrap()), 4096 - 64);
        assert_eq!(Record::open(&short, 8, 0).map(drop), Err(RecordError::Bounds));
    }

    /// Whatever a frontend writes there, nothing beyond the record is touched and all loops end.
    #[test]
    fn a_corrupt_list_is_followed_no_further_than_the_queue() {
        let place = place();
        let (mut record, _) = open(&place, 0);
        [0, 1].into_iter().for_each(|head| record.take(head));
        record.give_back(0);
        record.give_back(1);
        place.put(Record::state(1) + NEXT, 60_000_u16);
        record.settle(2);
        assert_eq!(open(&place, 2).1, [0], "what the frontend hid from itself");
    }
}
