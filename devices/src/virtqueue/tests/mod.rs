//! The queue against rings in guest memory.

mod virtio_queue_crate;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::walk::flag;
use super::*;
use crate::GuestMemory;
use crate::guest_memory::DESCRIPTOR_BYTES;

const TABLE: u64 = 0x4000;
const LAYOUT: QueueLayout =
    QueueLayout { size: 4, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap()
}

fn write_descriptor(memory: &GuestMemory, at: u64, descriptor: (u64, u32, u16, u16)) {
    let (addr, len, flags, next) = descriptor;
    memory.write_obj(addr.to_le(), GuestAddress(at)).unwrap();
    memory.write_obj(len.to_le(), GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags.to_le(), GuestAddress(at + 12)).unwrap();
    memory.write_obj(next.to_le(), GuestAddress(at + 14)).unwrap();
}

/// Makes `count` chains available, each of one buffer.
fn offer(memory: &GuestMemory, count: u16) {
    for index in 0..count {
        let at = LAYOUT.descriptors + 16 * u64::from(index);
        write_descriptor(memory, at, (0x5000, 1, flag::WRITE, 0));
        let entry = GuestAddress(LAYOUT.available + 4 + 2 * u64::from(index));
        memory.write_obj(index.to_le(), entry).unwrap();
    }
    memory.write_obj(count.to_le(), GuestAddress(LAYOUT.available + 2)).unwrap();
}

/// Pops the chain in an indirect table with `entries` entries.
fn pop_table(memory: &GuestMemory, entries: u32) -> Result<String, QueueError> {
    let pointer = (TABLE, entries * DESCRIPTOR_BYTES, flag::INDIRECT, 0);
    write_descriptor(memory, LAYOUT.descriptors, pointer);
    memory.write_obj(1u16.to_le(), GuestAddress(LAYOUT.available + 2)).unwrap();
    let mut queue = Queue::new(memory, LAYOUT, feature::RING_INDIRECT_DESC).unwrap();
    let mut chain = Chain::default();
    let head = queue.pop(&mut chain)?.unwrap();
    queue.push_used(head, 0);
    let buffers = |span: Span<'_>| span.buffers().collect::<Vec<_>>();
    let (readable, writable) = (chain.readable(), chain.writable());
    let lens = (readable.len(), writable.len());
    Ok(format!("{lens:?} {:?} {:?}", buffers(readable), buffers(writable)))
}

proptest! {
    /// The fast path agrees with the general one: a fourth entry that no descriptor refers to
    /// disables the fast path and changes nothing else.
    #[test]
    fn fast_walk_reads_what_walk_reads(
        flags in prop_oneof![
            Just([1, 1, 2]),
            Just([1, 3, 2]),
            [0u16..4, 0u16..4, 0u16..5],
        ],
        lens in proptest::array::uniform3(prop_oneof![1 => Just(0), 9 => any::<u32>()]),
        next in prop_oneof![Just([1, 2, 0]), proptest::array::uniform3(0u16..3)],
    ) {
        let memory = memory();
        for (at, ((flags, len), next)) in flags.into_iter().zip(lens).zip(next).enumerate() {
            let at = at as u64;
            write_descriptor(&memory, TABLE + 16 * at, (0x5000 + at, len, flags, next));
        }
        prop_assert_eq!(pop_table(&memory, 3), pop_table(&memory, 4));
    }
}

#[test]
fn outstanding_counts_heads_neither_returned_nor_given_up() {
    let memory = memory();
    offer(&memory, 3);
    let mut queue = Queue::new(&memory, LAYOUT, 0).unwrap();
    let mut chain = Chain::default();
    let mut pop = |queue: &mut Queue| queue.pop(&mut chain).unwrap().unwrap();
    let [first, second, third] = [(); 3].map(|()| pop(&mut queue));
    assert_eq!(queue.outstanding(), 3);
    queue.push_used(second, 0);
    queue.abandon(first);
    assert_eq!(queue.outstanding(), 1);
    let position = queue.position(std::iter::once(third));
    assert_eq!((queue.outstanding(), position.owed.as_slice()), (0, &[2][..]));

    let mut next = Queue::resume(&memory, LAYOUT, 0, position, None).unwrap();
    assert_eq!(next.outstanding(), 0);
    let owed = pop(&mut next);
    assert_eq!(next.outstanding(), 1);
    next.push_used(owed, 0);
    assert_eq!(next.outstanding(), 0);
}

/// Without debug assertions the head is silent, and the queue reports the loss.
#[test]
#[should_panic(expected = "1 chains were dropped without completion")]
fn a_queue_reports_lost_chains() {
    let memory = memory();
    offer(&memory, 1);
    let mut queue = Queue::new(&memory, LAYOUT, 0).unwrap();
    let head = queue.pop(&mut Chain::default()).unwrap().unwrap();
    std::mem::forget(head);
    drop(queue);
}
