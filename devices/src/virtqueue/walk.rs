//! Descriptor tables to chains (Virtio 1.2 §2.7.5). Each descriptor is read once and checked.

use super::chain::{Chain, ChainBuilder, Extent};
use super::error::{MAX_BUFFERS, QueueError};
use super::ring_memory::{Descriptor, RingMemory};
use super::span::Buffer;
use crate::guest_memory::DESCRIPTOR_BYTES;

/// Descriptor flags (§2.7.5).
pub(super) mod flag {
    /// VIRTQ_DESC_F_NEXT.
    pub(in crate::virtqueue) const NEXT: u16 = 1;
    /// VIRTQ_DESC_F_WRITE.
    pub(in crate::virtqueue) const WRITE: u16 = 2;
    /// VIRTQ_DESC_F_INDIRECT.
    pub(in crate::virtqueue) const INDIRECT: u16 = 4;
}

/// Reads the chains of a queue.
pub(super) struct ChainReader {
    pub(super) ring: RingMemory,
    /// The driver accepted RING_INDIRECT_DESC.
    pub(super) indirect: bool,
}

impl ChainReader {
    /// Fills `chain` with the chain that starts at descriptor `head`.
    ///
    /// # Errors
    ///
    /// The chain is malformed; the content of `chain` is undefined.
    #[inline]
    pub(super) fn read(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        let first = self.ring.descriptor(head).ok_or(QueueError::DescriptorIndex(head))?;
        if self.fast_walk(first, chain) { Ok(()) } else { self.walk(first, chain) }
    }

    /// Fast path: an indirect table of three descriptors in order, the first device-readable, the
    /// last device-writable. `false` for any other chain, including malformed ones; `chain` is then
    /// invalid.
    #[inline]
    fn fast_walk(&self, pointer: Descriptor, chain: &mut Chain) -> bool {
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
        chain.fast_fill([first, second, third].map(buffer_of), writable_from)
    }

    /// Follows the chain from `first` through the queue's own table.
    fn walk(&self, first: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        let mut builder = chain.builder(Extent::default());
        let mut descriptor = first;
        // A chain has each entry of the table at most once; a longer one is a loop.
        for _ in 0..self.ring.size() {
            if descriptor.flags & flag::INDIRECT != 0 {
                let extent = builder.extent;
                return self.walk_indirect(descriptor, chain, extent);
            }
            append(&mut builder, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                let extent = builder.extent;
                chain.set_extent(extent);
                return Ok(());
            }
            let next = descriptor.next;
            descriptor = self.ring.descriptor(next).ok_or(QueueError::DescriptorIndex(next))?;
        }
        Err(QueueError::ChainLength)
    }

    /// Follows the chain in the indirect table at `pointer`, after the buffers in `before`.
    /// `pointer` is the last descriptor of its own table (§2.7.5.3.1).
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
        let mut builder = chain.builder(before);
        let mut index = 0;
        for _ in 0..MAX_BUFFERS {
            let Some(descriptor) = Descriptor::read(&table, index) else {
                return Err(QueueError::DescriptorIndex(index));
            };
            if descriptor.flags & flag::INDIRECT != 0 {
                return Err(QueueError::IndirectMisplaced);
            }
            append(&mut builder, descriptor)?;
            if descriptor.flags & flag::NEXT == 0 {
                let extent = builder.extent;
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
fn append(chain: &mut ChainBuilder<'_>, descriptor: Descriptor) -> Result<(), QueueError> {
    chain.push(buffer_of(descriptor), descriptor.flags & flag::WRITE != 0)
}

#[inline]
fn buffer_of(descriptor: Descriptor) -> Buffer {
    Buffer { addr: descriptor.addr, len: descriptor.len }
}
