//! The split virtqueue as its worker uses it (Virtio 1.2 §2.7).
//!
//! Owned by one worker thread. Everything in the ring is the driver's to corrupt: what cannot be
//! right is a [`QueueError`], after which the device asks for a reset.

use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestAddress;

use super::chain::{Buffer, Chain};
use super::kept::{Kept, Position, Record, RecordError, RecordPlace};
use super::ring_memory::{DESCRIPTOR_BYTES, Descriptor, IndirectTable, RingMemory};
use crate::GuestMemory;

/// The most buffers of one chain. A driver may fill indirect tables beyond the queue's size; the
/// limit is that of Linux' `UIO_MAXIOV`, which is also the most one system call takes.
pub(super) const MAX_BUFFERS: usize = 1024;

mod flag {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;
}

/// Where and how large the driver made a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor table (`queue_desc`).
    pub descriptors: u64,
    /// Available ring (`queue_driver`).
    pub available: u64,
    /// Used ring (`queue_device`).
    pub used: u64,
}

/// How the driver broke a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is no power of two.
    #[error("queue size {0} is not a power of two")]
    Size(u16),
    /// An area is not aligned as §2.7 says or not within guest memory.
    #[error("a queue area at {0:#x} is misaligned or outside of guest memory")]
    Area(u64),
    /// More chains available than the queue has entries.
    #[error("available index {available} runs more than the queue's size ahead of {next}")]
    AvailableIndex {
        /// The driver's index.
        available: u16,
        /// The device's own.
        next: u16,
    },
    /// A descriptor index outside of its table.
    #[error("descriptor index {0} is outside of its table")]
    DescriptorIndex(u16),
    /// A chain that loops or is longer than any driver may make it.
    #[error("a descriptor chain loops or has over {MAX_BUFFERS} buffers")]
    ChainLength,
    /// A device-readable buffer after a device-writable one (§2.7.4.2).
    #[error("a device-readable buffer follows a device-writable one")]
    BufferOrder,
    /// An indirect table of a length that is zero, no multiple of 16, or outside of guest memory.
    #[error("an indirect table of {len} bytes at {addr:#x} is malformed")]
    IndirectTable {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// INDIRECT together with NEXT, within an indirect table, or not negotiated (§2.7.5.3.1).
    #[error("an indirect descriptor where none may be")]
    IndirectMisplaced,
    /// The record of chains in flight is not this queue's.
    #[error("the record of chains in flight cannot be used: {0}")]
    Record(#[from] RecordError),
    /// A chain without the buffers its protocol cannot do without.
    #[error("a request lacks the buffer for its status")]
    NoStatus,
}

/// A chain taken from the ring and owed back: [`Queue::push_used`] consumes it.
#[must_use = "the driver waits for each chain"]
#[derive(Debug, PartialEq, Eq)]
pub struct Head(u16);

/// A split virtqueue in use.
pub struct Queue {
    ring: RingMemory,
    memory: GuestMemory,
    event_idx: bool,
    indirect: bool,
    /// Next entry of the available ring to take.
    next_available: u16,
    /// Where the driver's entries ended when last looked at.
    available_end: u16,
    /// Next entry of the used ring to fill.
    next_used: u16,
    /// The used index when the driver was last considered for an interrupt.
    published_used: u16,
    /// Of a queue that may go on after its worker.
    kept: Option<Box<Kept>>,
}

impl Queue {
    /// Takes a queue into use as the driver laid it out, with the ring features in `features`.
    ///
    /// # Errors
    ///
    /// [`QueueError::Size`] or [`QueueError::Area`] if it cannot be used.
    pub fn new(
        memory: &GuestMemory,
        layout: QueueLayout,
        features: u64,
    ) -> Result<Self, QueueError> {
        if !layout.size.is_power_of_two() {
            return Err(QueueError::Size(layout.size));
        }
        // Alignments: Virtio 1.2 §2.7, table of the parts of a virtqueue.
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
        Ok(Self {
            ring,
            memory: memory.clone(),
            event_idx: features & super::feature::RING_EVENT_IDX != 0,
            indirect: features & super::feature::RING_INDIRECT_DESC != 0,
            next_available: 0,
            available_end: 0,
            next_used: 0,
            published_used: 0,
            kept: None,
        })
    }

    /// Takes a queue into use that was in use before: where its last worker stopped, or, where there is a
    /// record of chains in flight, where that and the used ring say.
    ///
    /// # Errors
    ///
    /// As [`Queue::new`], or [`QueueError::Record`].
    pub fn resume(
        memory: &GuestMemory,
        layout: QueueLayout,
        features: u64,
        position: Position,
        record: Option<&RecordPlace>,
    ) -> Result<Self, QueueError> {
        let mut queue = Self::new(memory, layout, features)?;
        let used = queue.ring.used_index();
        let Position { mut next_available, mut owed } = position;
        let mut open = None;
        if let Some(place) = record {
            let record;
            (record, owed) = Record::open(place, layout.size, used)?;
            // Each chain taken came back or is owed.
            let in_flight = u16::try_from(owed.len()).unwrap_or(layout.size);
            next_available = used.wrapping_add(in_flight);
            open = Some(record);
        }
        (queue.next_used, queue.published_used) = (used, used);
        (queue.next_available, queue.available_end) = (next_available, next_available);
        queue.kept = Some(Box::new(Kept { owed: owed.into(), record: open }));
        Ok(queue)
    }

    /// Where the queue stands while `in_flight` are owed beyond those not yet started again.
    pub(super) fn position(&self, in_flight: impl Iterator<Item = Head>) -> Position {
        let waiting = self.kept.iter().flat_map(|kept| kept.owed.iter().copied());
        let owed = in_flight.map(|Head(head)| head).chain(waiting).collect();
        Position { next_available: self.next_available, owed }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Takes the next available chain and fills `chain` with its buffers; `None` if there is none.
    ///
    /// # Errors
    ///
    /// What is wrong with the ring or the chain. The queue cannot be used any further.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.kept.is_some() { self.pop_kept(chain) } else { self.pop_available(chain) }
    }

    /// As [`Queue::pop`], of a queue that goes on: what an earlier worker did not give back comes first.
    fn pop_kept(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if let Some(head) = self.kept.as_ref().and_then(|kept| kept.owed.front().copied()) {
            self.walk(head, chain)?;
            self.kept.as_mut().map(|kept| kept.owed.pop_front());
            return Ok(Some(Head(head)));
        }
        let head = self.pop_available(chain)?;
        if let (Some(Head(head)), Some(record)) = (&head, self.record()) {
            record.take(*head);
        }
        Ok(head)
    }

    fn record(&mut self) -> Option<&mut Record> {
        self.kept.as_mut()?.record.as_mut()
    }

    fn pop_available(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.available_end == self.next_available && !self.look()? {
            return Ok(None);
        }
        let head = self.ring.available_entry(self.next_available);
        self.walk(head, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Head(head)))
    }

    /// Looks for new entries of the available ring; `false` if there are none.
    fn look(&mut self) -> Result<bool, QueueError> {
        let available = self.ring.available_index();
        let waiting = available.wrapping_sub(self.next_available);
        if waiting > self.size() {
            return Err(QueueError::AvailableIndex { available, next: self.next_available });
        }
        self.available_end = available;
        Ok(waiting != 0)
    }

    /// Gives a chain back; the driver sees it after the next [`Queue::publish`]. `written` is how many
    /// bytes of its writable buffers, from their start, were written.
    pub fn push_used(&mut self, Head(head): Head, written: u32) {
        self.ring.set_used_entry(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(record) = self.record() {
            record.give_back(head);
        }
    }

    /// Shows the driver what was given back since the last time, and says whether it wants an
    /// interrupt for it (Virtio 1.2 §2.7.7.2).
    #[must_use = "the driver may wait for the interrupt"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        self.ring.set_used_index(new);
        self.published_used = new;
        // The index must be out before the driver's wish is read, or both sides wait.
        fence(Ordering::SeqCst);
        if let Some(record) = self.record() {
            record.settle(new);
        }
        if self.event_idx {
            // §2.7.10: an interrupt if the index has just passed used_event.
            let event = self.ring.used_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            !self.ring.interrupts_suppressed()
        }
    }

    /// Asks the driver for a kick at the next available chain. `false` if one is there already, in
    /// which case the caller looks again before it sleeps.
    #[must_use = "chains may be waiting"]
    pub fn arm_kick(&mut self) -> bool {
        if self.event_idx {
            self.ring.set_available_event(self.next_available);
        } else {
            self.ring.set_kicks_suppressed(false);
        }
        // The wish must be out before the index is read, or both sides wait (§2.7.13.4.1).
        fence(Ordering::SeqCst);
        self.ring.available_index() == self.next_available
    }

    /// Tells the driver that kicks are not needed for now. With `EVENT_IDX` silence says so.
    pub fn disarm_kick(&mut self) {
        if !self.event_idx {
            self.ring.set_kicks_suppressed(true);
        }
    }

    /// Follows the chain from `head` through the queue's table.
    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        chain.clear();
        let mut index = head;
        // A chain visits each entry at most once: one that goes on is a loop.
        for _ in 0..self.size() {
            let Some(descriptor) = self.ring.descriptor(index) else {
                return Err(QueueError::DescriptorIndex(index));
            };
            if descriptor.flags & flag::INDIRECT != 0 {
                return self.walk_indirect(descriptor, chain);
            }
            append(chain, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainLength)
    }

    /// Follows the chain in the table that `pointer` points to. Nothing may follow it (§2.7.5.3.1).
    fn walk_indirect(&self, pointer: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        if !self.indirect || pointer.flags & flag::NEXT != 0 {
            return Err(QueueError::IndirectMisplaced);
        }
        let malformed = QueueError::IndirectTable { addr: pointer.addr.0, len: pointer.len };
        let entries = pointer.len as usize / DESCRIPTOR_BYTES;
        if entries == 0 || !(pointer.len as usize).is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(malformed);
        }
        let table = IndirectTable::new(&self.memory, pointer.addr, pointer.len).ok_or(malformed)?;
        let mut index = 0;
        for _ in 0..entries.min(MAX_BUFFERS) {
            let Some(descriptor) = table.descriptor(index) else {
                return Err(QueueError::DescriptorIndex(index));
            };
            if descriptor.flags & flag::INDIRECT != 0 {
                return Err(QueueError::IndirectMisplaced);
            }
            append(chain, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainLength)
    }
}

/// Appends a descriptor's buffer to the chain.
fn append(chain: &mut Chain, descriptor: Descriptor) -> Result<(), QueueError> {
    if chain.len() == MAX_BUFFERS {
        return Err(QueueError::ChainLength);
    }
    let buffer = Buffer { addr: descriptor.addr, len: descriptor.len };
    if !chain.push(buffer, descriptor.flags & flag::WRITE != 0) {
        return Err(QueueError::BufferOrder);
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A head as a queue would hand it out.
    pub(in crate::virtio) fn head(index: u16) -> Head {
        Head(index)
    }
}
