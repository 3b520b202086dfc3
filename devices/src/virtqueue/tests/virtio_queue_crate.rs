//! A second, independent reading of well-formed chains: the crate `virtio-queue` of rust-vmm.
//!
//! Both implementations serve the same ring in two copies of guest memory. They must agree on
//! heads, buffers, directions and lengths, on the used ring, and on the interrupt.

use proptest::sample::subsequence;

use super::*;

const SIZE: u16 = 64;
const RING: QueueLayout =
    QueueLayout { size: SIZE, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const USED_BYTES: usize = 4 + 8 * SIZE as usize;
/// Indirect tables, one page for each chain.
const TABLES: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 0x20_0000;

/// Length and address of a buffer. Neither reader accesses it.
type TestBuffer = (u32, u64);

/// A well-formed chain.
#[derive(Clone, Debug)]
struct TestChain {
    readable: Vec<TestBuffer>,
    writable: Vec<TestBuffer>,
    /// Number of buffers in the queue's own table; an indirect table has the others.
    direct: usize,
    /// Seed of the order of the indirect table's entries.
    shuffle: u64,
    /// The used length.
    written: u32,
}

impl TestChain {
    fn buffers(&self) -> Vec<(TestBuffer, bool)> {
        let readable = self.readable.iter().map(|buffer| (*buffer, false));
        readable.chain(self.writable.iter().map(|buffer| (*buffer, true))).collect()
    }
}

fn chain() -> impl Strategy<Value = TestChain> {
    let buffer = || (1u32..1 << 24, any::<u64>().prop_map(|addr| addr >> 1));
    let buffers = || prop::collection::vec(buffer(), 0..6);
    (buffers(), buffers(), any::<prop::sample::Index>(), any::<u64>(), any::<u32>())
        .prop_filter("a chain has buffers", |(readable, writable, ..)| {
            !readable.is_empty() || !writable.is_empty()
        })
        .prop_map(|(readable, writable, direct, shuffle, written)| {
            let direct = direct.index(readable.len() + writable.len() + 1);
            TestChain { readable, writable, direct, shuffle, written }
        })
}

/// A permutation of `0..len` that starts with 0, the first entry of an indirect table.
fn table_order(len: usize, mut seed: u64) -> Vec<u16> {
    let mut order: Vec<u16> = (0..u16::try_from(len).unwrap()).collect();
    for at in (2..len).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let other = 1 + usize::try_from(seed >> 33).unwrap() % at;
        order.swap(at, other);
    }
    order
}

/// Writes a list of linked descriptors into the entries `order` of a table.
fn link(memory: &GuestMemory, table: u64, order: &[u16], list: &[(u64, u32, u16)]) {
    for (at, (addr, len, flags)) in list.iter().enumerate() {
        let next = order.get(at + 1).copied().filter(|_| at + 1 < list.len());
        let flags = flags | if next.is_some() { flag::NEXT } else { 0 };
        let entry = table + 16 * u64::from(order[at]);
        write_descriptor(memory, entry, (*addr, *len, flags, next.unwrap_or(0)));
    }
}

/// Lays out a chain. Its direct descriptors are the entries `free` of the queue's table. Returns
/// the number of entries used.
fn lay_out(memory: &GuestMemory, chain: &TestChain, number: u64, free: &[u16]) -> usize {
    let list: Vec<(u64, u32, u16)> = chain
        .buffers()
        .iter()
        .map(|((len, addr), writable)| (*addr, *len, if *writable { flag::WRITE } else { 0 }))
        .collect();
    let (direct, indirect) = list.split_at(chain.direct);
    let mut direct = direct.to_vec();
    if !indirect.is_empty() {
        let table = TABLES + number * 0x1000;
        link(memory, table, &table_order(indirect.len(), chain.shuffle), indirect);
        let len = DESCRIPTOR_BYTES * u32::try_from(indirect.len()).unwrap();
        direct.push((table, len, flag::INDIRECT));
    }
    link(memory, RING.descriptors, free, &direct);
    direct.len()
}

/// Guest memory with the chains available, and the chains' heads.
fn ring(chains: &[TestChain], entries: &[u16], used_event: u16) -> (GuestMemory, Vec<u16>) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let (mut free, mut heads) = (entries, Vec::new());
    for (number, chain) in (0..).zip(chains) {
        heads.push(free[0]);
        let used = lay_out(&memory, chain, number, free);
        free = &free[used..];
    }
    let put = |at: u64, value: u16| memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    for (position, head) in (0..).zip(&heads) {
        put(RING.available + 4 + 2 * position, *head);
    }
    put(RING.available + 4 + 2 * u64::from(SIZE), used_event);
    put(RING.available + 2, u16::try_from(heads.len()).unwrap());
    (memory, heads)
}

type Seen = (u16, Vec<(TestBuffer, bool)>);

/// Serves all chains with this crate's queue.
fn serve(memory: &GuestMemory, chains: &[TestChain]) -> (Vec<Seen>, bool) {
    let features = feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;
    let mut queue = Queue::new(memory, RING, features).unwrap();
    let (mut chain, mut seen) = (Chain::default(), Vec::new());
    while let Some(head) = queue.pop(&mut chain).unwrap() {
        let expected = &chains[seen.len()];
        let sum = |buffers: &[TestBuffer]| -> u64 { buffers.iter().map(|b| u64::from(b.0)).sum() };
        assert_eq!(chain.readable().len(), sum(&expected.readable));
        assert_eq!(chain.writable().len(), sum(&expected.writable));
        let buffers = |span: Span<'_>, writable: bool| -> Vec<_> {
            span.buffers().map(|buffer| ((buffer.len, buffer.addr.0), writable)).collect()
        };
        let all = [buffers(chain.readable(), false), buffers(chain.writable(), true)].concat();
        seen.push((head.index(), all));
        queue.push_used(head, expected.written);
    }
    (seen, queue.publish())
}

/// Serves all chains with `virtio-queue`.
fn serve_with_crate(memory: &GuestMemory, chains: &[TestChain]) -> (Vec<Seen>, bool) {
    use virtio_queue::{Queue, QueueT};
    let mut queue = Queue::new(SIZE).unwrap();
    let low = |addr: u64| Some(u32::try_from(addr).unwrap());
    queue.set_desc_table_address(low(RING.descriptors), None);
    queue.set_avail_ring_address(low(RING.available), None);
    queue.set_used_ring_address(low(RING.used), None);
    queue.set_event_idx(true);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    let mut seen = Vec::new();
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let buffer = |one: virtio_queue::desc::split::Descriptor| {
            ((one.len(), one.addr().0), one.is_write_only())
        };
        let written = chains[seen.len()].written;
        seen.push((head, chain.map(buffer).collect()));
        queue.add_used(memory, head, written).unwrap();
    }
    let interrupt = queue.needs_notification(memory).unwrap();
    (seen, interrupt)
}

fn used_ring(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; USED_BYTES];
    memory.read_slice(&mut bytes, GuestAddress(RING.used)).unwrap();
    bytes
}

proptest! {
    #[test]
    fn both_readers_agree_on_well_formed_chains(
        chains in prop::collection::vec(chain(), 1..5),
        entries in subsequence((0..SIZE).collect::<Vec<_>>(), usize::from(SIZE)).prop_shuffle(),
        used_event in 0u16..6,
    ) {
        let expected: Vec<_> = chains.iter().map(TestChain::buffers).collect();
        let (ours, heads) = ring(&chains, &entries, used_event);
        let (theirs, _) = ring(&chains, &entries, used_event);
        let (seen, interrupt) = serve(&ours, &chains);
        prop_assert_eq!(&seen, &heads.into_iter().zip(expected).collect::<Vec<_>>());
        prop_assert_eq!((seen, interrupt), serve_with_crate(&theirs, &chains));
        prop_assert_eq!(used_ring(&ours), used_ring(&theirs));
    }
}
