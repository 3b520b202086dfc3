//! The split virtqueue as its worker uses it (Virtio 1.2 §2.7).
//!
//! Owned by one worker thread. Everything in the ring is the driver's to corrupt: what cannot be
//! right is a [`QueueError`], after which the device asks for a reset.

use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestAddress;

use super::chain::{Buffer, Chain, Extent, Filling};
use super::inflight_record::{Kept, Position, Record, RecordError, RecordPlace};
use super::ring_memory::{Descriptor, RingMemory};
use crate::GuestMemory;
use crate::guest_memory::{DESCRIPTOR_BYTES, GuestMap};
use crate::virtio::feature;

/// The most buffers of one chain. A driver may fill indirect tables beyond the queue's size; the
/// limit is that of Linux' `UIO_MAXIOV`, which is also the most one system call takes.
pub(crate) const MAX_BUFFERS: usize = 1024;

mod flag {
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;
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
    event_idx: bool,
    indirect: bool,
    /// The driver was asked to kick (with `EVENT_IDX`).
    armed: bool,
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
            event_idx: features & feature::RING_EVENT_IDX != 0,
            indirect: features & feature::RING_INDIRECT_DESC != 0,
            // The driver finds zeroes, which ask it to kick at the first chain.
            armed: true,
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
    pub(crate) fn position(&self, in_flight: impl Iterator<Item = Head>) -> Position {
        let waiting = self.kept.iter().flat_map(|kept| kept.owed.iter().copied());
        let owed = in_flight.map(|Head(head)| head).chain(waiting).collect();
        Position { next_available: self.next_available, owed }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Guest memory, as its chains reach it.
    #[must_use]
    pub fn map(&self) -> &GuestMap {
        self.ring.map()
    }

    /// Takes the next available chain and fills `chain` with its buffers; `None` if there is none.
    ///
    /// # Errors
    ///
    /// What is wrong with the ring or the chain. The queue cannot be used any further.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.kept.is_some() { self.pop_kept(chain) } else { self.pop_available(chain) }
    }

    /// As [`Queue::pop`], of a queue that goes on: what an earlier worker did not give back comes first.
    #[cold]
    fn pop_kept(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if let Some(head) = self.kept.as_ref().and_then(|kept| kept.owed.front().copied()) {
            self.read_chain(head, chain)?;
            self.kept.as_mut().map(|kept| kept.owed.pop_front());
            return Ok(Some(Head(head)));
        }
        let head = self.pop_available(chain)?;
        if let (Some(Head(head)), Some(record)) = (&head, self.record()) {
            record.take(*head);
        }
        Ok(head)
    }

    /// Fills `chain` with the chain that begins at `head`.
    #[inline]
    fn read_chain(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        let first = self.ring.descriptor(head).ok_or(QueueError::DescriptorIndex(head))?;
        if self.walk_three(first, chain) { Ok(()) } else { self.walk(first, chain) }
    }

    fn record(&mut self) -> Option<&mut Record> {
        self.kept.as_mut()?.record.as_mut()
    }

    #[inline]
    fn pop_available(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.available_end == self.next_available && !self.look()? {
            return Ok(None);
        }
        let head = self.ring.available_entry(self.next_available);
        self.read_chain(head, chain)?;
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
            self.armed = true;
        } else {
            self.ring.set_kicks_suppressed(false);
        }
        // The wish must be out before the index is read, or both sides wait (§2.7.13.4.1).
        fence(Ordering::SeqCst);
        !self.has_available()
    }

    /// Tells the driver that kicks are not needed for now. It may kick all the same.
    pub fn disarm_kick(&mut self) {
        if !self.event_idx {
            self.ring.set_kicks_suppressed(true);
        } else if std::mem::take(&mut self.armed) {
            // An index that no driver reaches from here: half of all there are ahead.
            self.ring.set_available_event(self.next_available.wrapping_add(1 << 15));
        }
    }

    /// Whether there is something to take.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.ring.available_index() != self.next_available
            || self.kept.as_ref().is_some_and(|kept| !kept.owed.is_empty())
    }

    /// Follows what most chains are: a table of three descriptors in their order, the first one device-readable and the last
    /// one device-writable. `false` if it is anything else, of which nothing is kept.
    #[inline]
    fn walk_three(&self, pointer: Descriptor, chain: &mut Chain) -> bool {
        const NEXT_OR_WRITE: u16 = flag::NEXT | flag::WRITE;
        if pointer.flags != flag::INDIRECT || pointer.len != 3 * DESCRIPTOR_BYTES || !self.indirect
        {
            return false;
        }
        let Some(table) = self.ring.map().table(pointer.addr, 3) else { return false };
        let read = |index| Descriptor::read(&table, index);
        let (Some(first), Some(second), Some(third)) = (read(0), read(1), read(2)) else {
            return false;
        };
        let writable_from = match second.flags {
            flag::NEXT => 2,
            NEXT_OR_WRITE => 1,
            _ => return false,
        };
        if (first.flags, first.next, second.next, third.flags) != (flag::NEXT, 1, 2, flag::WRITE) {
            return false;
        }
        chain.set_three([first, second, third].map(buffer_of), writable_from)
    }

    /// Follows the chain from `first` through the queue's table.
    fn walk(&self, first: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        let mut filling = chain.fill(Extent::default());
        let mut descriptor = first;
        // A chain visits each entry at most once: one that goes on is a loop.
        for _ in 0..self.size() {
            if descriptor.flags & flag::INDIRECT != 0 {
                let extent = filling.extent;
                return self.walk_indirect(descriptor, chain, extent);
            }
            append(&mut filling, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                let extent = filling.extent;
                chain.set_extent(extent);
                return Ok(());
            }
            let next = descriptor.next;
            descriptor = self.ring.descriptor(next).ok_or(QueueError::DescriptorIndex(next))?;
        }
        Err(QueueError::ChainLength)
    }

    /// Follows the chain in the table that `pointer` points to, behind what was found before it. Nothing may follow it
    /// (§2.7.5.3.1).
    fn walk_indirect(
        &self,
        pointer: Descriptor,
        chain: &mut Chain,
        before: Extent,
    ) -> Result<(), QueueError> {
        if !self.indirect || pointer.flags & flag::NEXT != 0 {
            return Err(QueueError::IndirectMisplaced);
        }
        let malformed = QueueError::IndirectTable { addr: pointer.addr.0, len: pointer.len };
        let entries = pointer.len / DESCRIPTOR_BYTES;
        if entries == 0 || !pointer.len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(malformed);
        }
        let table = self.ring.map().table(pointer.addr, entries).ok_or(malformed)?;
        let mut filling = chain.fill(before);
        let mut index = 0;
        for _ in 0..MAX_BUFFERS {
            let Some(descriptor) = Descriptor::read(&table, index) else {
                return Err(QueueError::DescriptorIndex(index));
            };
            if descriptor.flags & flag::INDIRECT != 0 {
                return Err(QueueError::IndirectMisplaced);
            }
            append(&mut filling, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                let extent = filling.extent;
                chain.set_extent(extent);
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainLength)
    }
}

/// Appends a descriptor's buffer to the chain.
#[inline(always)]
fn append(chain: &mut Filling<'_>, descriptor: Descriptor) -> Result<(), QueueError> {
    chain.push(buffer_of(descriptor), descriptor.flags & flag::WRITE != 0)
}

#[inline]
fn buffer_of(descriptor: Descriptor) -> Buffer {
    Buffer { addr: descriptor.addr, len: descriptor.len }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    /// A head as a queue would hand it out.
    pub(crate) fn head(index: u16) -> Head {
        Head(index)
    }

    const TABLE: u64 = 0x4000;
    const LAYOUT: QueueLayout =
        QueueLayout { size: 4, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

    fn write_descriptor(memory: &GuestMemory, at: u64, descriptor: (u64, u32, u16, u16)) {
        let (addr, len, flags, next) = descriptor;
        memory.write_obj(addr.to_le(), GuestAddress(at)).unwrap();
        memory.write_obj(len.to_le(), GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags.to_le(), GuestAddress(at + 12)).unwrap();
        memory.write_obj(next.to_le(), GuestAddress(at + 14)).unwrap();
    }

    /// Pops the chain in a table of so many entries.
    fn pop_table(memory: &GuestMemory, entries: u32) -> Result<String, QueueError> {
        let pointer = (TABLE, entries * DESCRIPTOR_BYTES, flag::INDIRECT, 0);
        write_descriptor(memory, LAYOUT.descriptors, pointer);
        memory.write_obj(1u16.to_le(), GuestAddress(LAYOUT.available + 2)).unwrap();
        let features = super::feature::RING_INDIRECT_DESC;
        let mut queue = Queue::new(memory, LAYOUT, features).unwrap();
        let mut chain = Chain::default();
        queue.pop(&mut chain)?;
        let buffers = |span: crate::virtqueue::Span<'_>| span.buffers().collect::<Vec<_>>();
        let (readable, writable) = (chain.readable(), chain.writable());
        let lens = (readable.len(), writable.len());
        Ok(format!("{lens:?} {:?} {:?}", buffers(readable), buffers(writable)))
    }

    proptest! {
        /// The way of tables of three comes to what the way of all others does: a fourth entry that nobody refers to
        /// changes nothing.
        #[test]
        fn three_descriptors_read_like_any_number(
            flags in prop_oneof![
                Just([1, 1, 2]),
                Just([1, 3, 2]),
                [0u16..4, 0u16..4, 0u16..5],
            ],
            lens in proptest::array::uniform3(prop_oneof![1 => Just(0), 9 => any::<u32>()]),
            next in prop_oneof![Just([1, 2, 0]), proptest::array::uniform3(0u16..3)],
        ) {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
            for (at, ((flags, len), next)) in flags.into_iter().zip(lens).zip(next).enumerate() {
                let at = at as u64;
                write_descriptor(&memory, TABLE + 16 * at, (0x5000 + at, len, flags, next));
            }
            prop_assert_eq!(pop_table(&memory, 3), pop_table(&memory, 4));
        }
    }
}
