//! The driver's half of a split virtqueue (Virtio 1.2 §2.7), with raw access to each field for
//! hostile drivers.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use devices::GuestMemory;
use devices::virtio::QueueLayout;
use vm_memory::{Bytes, GuestAddress};

use fixtures::wait_for;

use super::feature;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// The next entry.
    pub next: u16,
}

impl Descriptor {
    /// Device-readable.
    #[must_use]
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// Device-writable.
    #[must_use]
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// A pointer to an indirect table.
    #[must_use]
    pub fn indirect(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: INDIRECT, next: 0 }
    }

    /// With NEXT set and entry `next` following.
    #[must_use]
    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// Whether WRITE is set.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// The entry in its memory layout.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&self.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&self.len.to_le_bytes());
        raw[12..14].copy_from_slice(&self.flags.to_le_bytes());
        raw[14..].copy_from_slice(&self.next.to_le_bytes());
        raw
    }
}

/// One entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub id: u32,
    /// Bytes written, by the device's account.
    pub len: u32,
}

/// A split virtqueue as its driver keeps it.
pub struct Ring {
    memory: GuestMemory,
    layout: QueueLayout,
    event_idx: bool,
    free: Vec<u16>,
    /// The descriptors of each pending chain, by head.
    chains: HashMap<u16, Vec<u16>>,
    next_available: u16,
    published: u16,
    next_used: u16,
}

impl Ring {
    /// An empty ring at `layout`. Zeroes its memory.
    #[must_use]
    pub fn new(memory: GuestMemory, layout: QueueLayout, features: u64) -> Self {
        let ring = Self::at(memory, layout, features);
        let entries = usize::from(layout.size);
        ring.put(layout.descriptors, &vec![0; 16 * entries]);
        ring.put(layout.available, &vec![0; 6 + 2 * entries]);
        ring.put(layout.used, &vec![0; 6 + 8 * entries]);
        ring
    }

    /// A second view of the ring at `layout`. Leaves its memory unchanged.
    #[must_use]
    pub fn at(memory: GuestMemory, layout: QueueLayout, features: u64) -> Self {
        Self {
            memory,
            layout,
            event_idx: features & feature::EVENT_IDX != 0,
            free: (0..layout.size).rev().collect(),
            chains: HashMap::new(),
            next_available: 0,
            published: 0,
            next_used: 0,
        }
    }

    /// Where the ring is.
    #[must_use]
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(addr), Ordering::Acquire).unwrap())
    }

    fn store(&self, addr: u64, value: u16) {
        self.memory.store(value.to_le(), GuestAddress(addr), Ordering::Release).unwrap();
    }

    /// Writes entry `index` of the descriptor table.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.put(self.layout.descriptors + 16 * u64::from(index), &descriptor.bytes());
    }

    /// Writes an indirect table to `addr`.
    pub fn set_table(&self, addr: u64, table: &[Descriptor]) {
        let bytes: Vec<u8> = table.iter().flat_map(Descriptor::bytes).collect();
        self.put(addr, &bytes);
    }

    /// Writes entry `at` (mod size) of the available ring.
    pub fn set_available(&self, at: u16, head: u16) {
        let position = u64::from(at % self.layout.size);
        self.store(self.layout.available + 4 + 2 * position, head);
    }

    /// Writes the available index.
    pub fn set_available_index(&self, index: u16) {
        self.store(self.layout.available + 2, index);
    }

    /// Reads the available index.
    #[must_use]
    pub fn available_index(&self) -> u16 {
        self.load(self.layout.available + 2)
    }

    /// Writes the available ring's flags: 1 suppresses interrupts.
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.layout.available, flags);
    }

    /// Writes `used_event`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.layout.available + 4 + 2 * u64::from(self.layout.size), index);
    }

    /// Reads the used ring's flags: 1 suppresses kicks.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.load(self.layout.used)
    }

    /// Reads the used index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.load(self.layout.used + 2)
    }

    /// Reads `avail_event`.
    #[must_use]
    pub fn available_event(&self) -> u16 {
        self.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))
    }

    /// Reads entry `at` (mod size) of the used ring.
    #[must_use]
    pub fn used_entry(&self, at: u16) -> Used {
        let addr = self.layout.used + 4 + 8 * u64::from(at % self.layout.size);
        let word = |addr| u32::from_le(self.memory.read_obj(GuestAddress(addr)).unwrap());
        Used { id: word(addr), len: word(addr + 4) }
    }

    /// Makes the chain at `head` available and publishes it, whatever the descriptor table holds.
    pub fn offer_raw(&mut self, head: u16) {
        self.set_available(self.next_available, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.published = self.next_available;
        self.set_available_index(self.next_available);
    }

    /// Links the buffers into a chain and makes it available without publishing it.
    pub fn offer(&mut self, buffers: &[Descriptor]) -> u16 {
        let start = self.free.len().checked_sub(buffers.len()).expect("free descriptors");
        let entries = self.free.split_off(start);
        for (at, (entry, buffer)) in entries.iter().zip(buffers).enumerate() {
            let linked = entries.get(at + 1).map_or(*buffer, |next| buffer.then(*next));
            self.set_descriptor(*entry, linked);
        }
        let head = *entries.first().expect("a chain has buffers");
        self.set_available(self.next_available, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.chains.insert(head, entries);
        head
    }

    /// As [`Ring::offer`], with the chain in an indirect table at `addr`.
    pub fn offer_indirect(&mut self, addr: u64, buffers: &[Descriptor]) -> u16 {
        let linked = |(next, buffer): (u16, &Descriptor)| {
            if usize::from(next) < buffers.len() { buffer.then(next) } else { *buffer }
        };
        let table: Vec<_> = (1..).zip(buffers).map(linked).collect();
        self.set_table(addr, &table);
        let bytes = u32::try_from(16 * table.len()).unwrap();
        self.offer(&[Descriptor::indirect(addr, bytes)])
    }

    /// Publishes the available chains; returns whether the device needs a kick (§2.7.13.3).
    #[must_use = "the device may need a kick"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        self.set_available_index(new);
        self.published = new;
        fence(Ordering::SeqCst);
        if self.event_idx {
            new.wrapping_sub(self.available_event()).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// Takes the next used entry and frees its descriptors.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        let used = self.used_entry(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(used.id).expect("the used id is a descriptor index");
        if let Some(entries) = self.chains.remove(&head) {
            self.free.extend(entries.into_iter().rev());
        }
        Some(used)
    }

    /// As [`Ring::take_used`], but waits for an entry.
    pub fn wait_used(&mut self) -> Used {
        wait_for(|| self.take_used()).expect("a chain is used in time")
    }
}
