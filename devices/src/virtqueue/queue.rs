//! The split virtqueue, device side (Virtio 1.2 §2.7). Owned by the thread of one worker.
//!
//! The driver can corrupt everything in the ring. An impossible value is a [`QueueError`]; the
//! device then needs a reset.

use std::sync::atomic::{Ordering, fence};
use std::thread;

use vm_memory::GuestAddress;

use super::chain::Chain;
use super::error::QueueError;
use super::feature;
use super::head::Head;
use super::inflight_record::{InflightRecord, Position, RecordRegion};
use super::resumed::Resumed;
use super::ring_memory::RingMemory;
use super::walk::ChainReader;
use crate::{GuestMap, GuestMemory};

/// Size and addresses of a queue, as the driver configured them (§2.7, §4.1.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table (`queue_desc`).
    pub descriptors: u64,
    /// Guest-physical address of the available ring (`queue_driver`).
    pub available: u64,
    /// Guest-physical address of the used ring (`queue_device`).
    pub used: u64,
}

/// A split virtqueue in use.
pub struct Queue {
    chains: ChainReader,
    event_idx: bool,
    /// With EVENT_IDX: the driver was asked to kick.
    armed: bool,
    /// Next entry of the available ring to take.
    next_available: u16,
    /// End of the driver's entries at the last read of the available index.
    available_end: u16,
    /// Next entry of the used ring to fill.
    next_used: u16,
    /// The used index at the last check whether the driver wants an interrupt.
    published_used: u16,
    /// Chains in flight that this value did not pop or will not return: `next_available -
    /// next_used` exceeds the heads handed out by this number.
    not_ours: u16,
    /// `None` for a queue that starts with a reset and ends with one.
    resumed: Option<Box<Resumed>>,
}

impl Queue {
    /// A queue after a reset, with the ring features in `features`.
    ///
    /// # Errors
    ///
    /// [`QueueError::Size`] or [`QueueError::Area`].
    pub fn new(
        memory: &GuestMemory,
        layout: QueueLayout,
        features: u64,
    ) -> Result<Self, QueueError> {
        if !layout.size.is_power_of_two() {
            return Err(QueueError::Size(layout.size));
        }
        // Alignment: Virtio 1.2 §2.7, table of the parts of a virtqueue.
        for (addr, alignment) in [(layout.descriptors, 16), (layout.available, 2), (layout.used, 4)]
        {
            if !addr.is_multiple_of(alignment) {
                return Err(QueueError::Area(addr));
            }
        }
        let ring = RingMemory::new(
            memory,
            layout.size,
            GuestAddress(layout.descriptors),
            GuestAddress(layout.available),
            GuestAddress(layout.used),
        )
        .ok_or(QueueError::Area(layout.descriptors))?;
        let indirect = features & feature::RING_INDIRECT_DESC != 0;
        Ok(Self {
            chains: ChainReader { ring, indirect },
            event_idx: features & feature::RING_EVENT_IDX != 0,
            // The ring is zero, which asks the driver to kick for the first chain.
            armed: true,
            next_available: 0,
            available_end: 0,
            next_used: 0,
            published_used: 0,
            not_ours: 0,
            resumed: None,
        })
    }

    /// A queue that an earlier worker served. It continues at `position`, or at the position in
    /// `record` if there is one.
    ///
    /// # Errors
    ///
    /// As [`Queue::new`], or [`QueueError::Record`].
    pub fn resume(
        memory: &GuestMemory,
        layout: QueueLayout,
        features: u64,
        position: Position,
        record: Option<&RecordRegion>,
    ) -> Result<Self, QueueError> {
        let mut queue = Self::new(memory, layout, features)?;
        let used = queue.ring().used_index();
        let Position { mut next_available, mut owed } = position;
        let mut open = None;
        if let Some(region) = record {
            let record;
            (record, owed) = InflightRecord::open(region, layout.size, used)?;
            // Each chain taken was returned or is owed.
            let in_flight = u16::try_from(owed.len()).unwrap_or(layout.size);
            next_available = used.wrapping_add(in_flight);
            open = Some(record);
        }
        (queue.next_used, queue.published_used) = (used, used);
        (queue.next_available, queue.available_end) = (next_available, next_available);
        queue.not_ours = next_available.wrapping_sub(used);
        queue.resumed = Some(Box::new(Resumed { owed: owed.into(), record: open }));
        Ok(queue)
    }

    /// The position at which another worker can resume; it owes `in_flight`, which this queue gives
    /// up, and the chains that this worker did not start.
    pub(crate) fn position(&mut self, in_flight: impl Iterator<Item = Head>) -> Position {
        let mut owed: Vec<u16> = in_flight.map(|head| self.give_up(head)).collect();
        owed.extend(self.resumed.iter().flat_map(|resumed| resumed.owed.iter()));
        Position { next_available: self.next_available, owed }
    }

    /// Leaves a chain to a reset.
    pub(crate) fn abandon(&mut self, head: Head) {
        let _ = self.give_up(head);
    }

    fn give_up(&mut self, head: Head) -> u16 {
        self.not_ours = self.not_ours.wrapping_add(1);
        head.into_index()
    }

    /// Number of heads that [`Queue::pop`] returned and that were neither returned to the driver
    /// nor given up. Derived from the ring indices, so that the data path does not count.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used).wrapping_sub(self.not_ours)
    }

    #[inline]
    fn ring(&self) -> &RingMemory {
        &self.chains.ring
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring().size()
    }

    /// The guest memory that chains refer to.
    #[must_use]
    pub fn map(&self) -> &GuestMap {
        self.ring().map()
    }

    /// Takes the next available chain and fills `chain` with its buffers; `None` if no chain is
    /// available.
    ///
    /// # Errors
    ///
    /// The ring or the chain is malformed. The queue is not usable afterwards.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.resumed.is_some() { self.pop_resumed(chain) } else { self.pop_available(chain) }
    }

    /// As [`Queue::pop`] for a resumed queue: chains that an earlier worker owes come first.
    #[cold]
    fn pop_resumed(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        let Some(resumed) = &mut self.resumed else { return self.pop_available(chain) };
        if let Some(index) = resumed.owed.front().copied() {
            self.chains.read(index, chain)?;
            resumed.owed.pop_front();
            self.not_ours = self.not_ours.wrapping_sub(1);
            return Ok(Some(Head::new(index)));
        }
        let head = self.pop_available(chain)?;
        if let (Some(head), Some(record)) = (&head, self.record()) {
            record.mark_in_flight(head.index());
        }
        Ok(head)
    }

    fn record(&mut self) -> Option<&mut InflightRecord> {
        self.resumed.as_mut()?.record.as_mut()
    }

    /// Takes the next entry of the available ring.
    #[inline]
    fn pop_available(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.available_end == self.next_available && !self.read_available_index()? {
            return Ok(None);
        }
        let index = self.ring().available_entry(self.next_available);
        self.chains.read(index, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Head::new(index)))
    }

    /// Reads the available index; `false` if the driver added no entries.
    fn read_available_index(&mut self) -> Result<bool, QueueError> {
        let available = self.ring().available_index();
        let waiting = available.wrapping_sub(self.next_available);
        if waiting > self.size() {
            return Err(QueueError::AvailableIndex { available, next: self.next_available });
        }
        self.available_end = available;
        Ok(waiting != 0)
    }

    /// Returns a chain. The driver sees it after the next [`Queue::publish`]. `written` is the
    /// number of bytes written to the start of its device-writable buffers (§2.7.8.2).
    pub fn push_used(&mut self, head: Head, written: u32) {
        let index = head.into_index();
        self.ring().set_used_entry(self.next_used, index, written);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(record) = self.record() {
            record.add_to_batch(index);
        }
    }

    /// Publishes the chains returned since the last call. Returns whether the driver wants an
    /// interrupt for them (§2.7.7.2).
    #[must_use = "the driver may wait for the interrupt"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        self.ring().set_used_index(new);
        self.published_used = new;
        // The index must be visible before the suppression state is read, or both sides wait.
        fence(Ordering::SeqCst);
        if let Some(record) = self.record() {
            record.complete_batch(new);
        }
        if self.event_idx {
            // §2.7.10: an interrupt if the index has just passed used_event.
            let event = self.ring().used_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            !self.ring().interrupts_suppressed()
        }
    }

    /// Asks the driver to kick for the next available chain. `false` if a chain is available
    /// already: the caller then must not sleep.
    #[must_use = "chains may be available"]
    pub fn arm_kick(&mut self) -> bool {
        if self.event_idx {
            self.ring().set_available_event(self.next_available);
            self.armed = true;
        } else {
            self.ring().set_kicks_suppressed(false);
        }
        // The request must be visible before the index is read, or both sides wait (§2.7.13.4.1).
        fence(Ordering::SeqCst);
        !self.has_available()
    }

    /// Suppresses kicks. The driver may kick nevertheless (§2.7.10.1).
    pub fn disarm_kick(&mut self) {
        if !self.event_idx {
            self.ring().set_kicks_suppressed(true);
        } else if std::mem::take(&mut self.armed) {
            // Half the index space ahead, which no driver reaches before the next call.
            self.ring().set_available_event(self.next_available.wrapping_add(1 << 15));
        }
    }

    /// Whether [`Queue::pop`] would find a chain.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.ring().available_index() != self.next_available
            || self.resumed.as_ref().is_some_and(|resumed| !resumed.owed.is_empty())
    }
}

impl Drop for Queue {
    /// Reports chains that the driver would wait for until its next reset.
    fn drop(&mut self) {
        let lost = self.outstanding();
        if lost != 0 {
            tracing::error!(target: "virtio", lost, "chains were dropped without completion");
            debug_assert!(thread::panicking(), "{lost} chains were dropped without completion");
        }
    }
}
