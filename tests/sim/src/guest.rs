//! The driver of one queue: requests in random framings, and what comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::{ActiveQueue, Interrupt, Queue, QueueLayout};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use driver::{Descriptor, Ring, kind};

use super::oracle::{OpId, Reading, Time};
use super::random::Random;

/// Memory of each queue's ring.
const RING_BYTES: u64 = 0x1000;
/// Where buffers begin, and how much each request has.
const BUFFERS: u64 = 0x1_0000;
const SLOT_BYTES: u64 = 0x3000;
const STATUS_OFFSET: u64 = 0x2f00;
/// Most sectors of one transfer.
pub(super) const MOST_SECTORS: usize = 16;
/// Guest memory that all of it takes.
pub(super) const MEMORY_BYTES: usize = 0x10_0000;

const POISON: [u8; SLOT_BYTES as usize] = [0xa5; SLOT_BYTES as usize];
/// What the driver leaves where the status goes.
const NO_STATUS: u8 = 0xff;

/// What a request is, to the driver.
pub(super) enum Asked {
    Read { first: usize, reading: Reading },
    Change { op: OpId, offered: Time },
    Flush { offered: Time },
    Id,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { first, .. } => write!(f, "a read of sector {first}"),
            Self::Change { op, offered } => write!(f, "operation {op} of time {offered}"),
            Self::Flush { offered } => write!(f, "a flush of time {offered}"),
            Self::Id => f.write_str("a question for its name"),
        }
    }
}

/// How a request looks in memory.
pub(super) struct Shape {
    pub(super) kind: u32,
    pub(super) sector: usize,
    /// How many sectors it is about, for the trace.
    pub(super) sectors: usize,
    /// Bytes for the device.
    pub(super) out: Vec<u8>,
    /// Bytes from the device.
    pub(super) wanted: usize,
}

/// A request on its way.
struct Pending {
    asked: Asked,
    /// When it was offered.
    since_ns: u64,
    slot: u64,
    data: Vec<(u64, usize)>,
    /// Bytes from the device but the status.
    wanted: usize,
    descriptors: usize,
}

/// A request that came back.
pub(super) struct Returned {
    pub(super) asked: Asked,
    /// When it was offered.
    pub(super) since_ns: u64,
    pub(super) status: u8,
    pub(super) data: Vec<u8>,
}

/// See the module's documentation.
pub(super) struct Guest {
    memory: GuestMemory,
    ring: Ring,
    event_idx: bool,
    indirect: bool,
    slots: Vec<u64>,
    free_descriptors: usize,
    outstanding: BTreeMap<u16, Pending>,
    seen_used: u16,
    interrupt: Arc<EventFd>,
    /// Looks at the used ring unasked, with interrupts off.
    pub(super) polls: bool,
    /// An interrupt has come.
    pub(super) interrupted: bool,
}

impl Guest {
    /// Lays out queue `index`, and makes what the device needs of it.
    pub(super) fn new(
        memory: &GuestMemory,
        index: u16,
        size: u16,
        features: u64,
    ) -> (Self, ActiveQueue) {
        let base = u64::from(index) * RING_BYTES;
        let layout =
            QueueLayout { size, descriptors: base, available: base + 0x400, used: base + 0x800 };
        let ring = Ring::new(memory.clone(), layout, features);
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queue = Queue::new(memory, layout, features).unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let signal = Interrupt::fixed(Arc::clone(&interrupt));
        let active = ActiveQueue::new(index, queue, kick, signal);
        let first = u64::from(index) * u64::from(size);
        let slots = (first..first + u64::from(size)).map(|slot| BUFFERS + slot * SLOT_BYTES);
        let guest = Self {
            memory: memory.clone(),
            ring,
            event_idx: features & driver::feature::EVENT_IDX != 0,
            indirect: features & driver::feature::INDIRECT_DESC != 0,
            slots: slots.collect(),
            free_descriptors: size.into(),
            outstanding: BTreeMap::new(),
            seen_used: 0,
            interrupt,
            polls: false,
            interrupted: false,
        };
        (guest, active)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Everything on its way, given up in a reset.
    pub(super) fn give_up(self) -> impl Iterator<Item = Asked> {
        self.outstanding.into_values().map(|pending| pending.asked)
    }

    /// Whether a request of this shape fits however it is cut.
    pub(super) fn has_room(&self) -> bool {
        !self.slots.is_empty() && self.free_descriptors >= if self.indirect { 1 } else { 4 }
    }

    /// Makes a request available, not shown before [`Guest::publish`].
    pub(super) fn offer(&mut self, shape: &Shape, asked: Asked, now_ns: u64, random: &mut Random) {
        let slot = self.slots.pop().expect("has_room was asked");
        self.put(slot, &POISON);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&shape.kind.to_le_bytes());
        header[8..].copy_from_slice(&(shape.sector as u64).to_le_bytes());
        self.put(slot, &header);
        self.put(slot + STATUS_OFFSET, &[NO_STATUS]);
        let chained = self.indirect && (self.free_descriptors < 4 || random.coin());
        let most = if chained { 5 } else { self.free_descriptors - 2 };
        let data = pieces(slot, shape.out.len().max(shape.wanted), most, random);
        let mut chain = vec![Descriptor::readable(slot, 16)];
        let mut at = 0;
        for (addr, len) in &data {
            let bytes = u32::try_from(*len).unwrap();
            if shape.wanted > 0 {
                chain.push(Descriptor::writable(*addr, bytes));
            } else {
                self.put(*addr, &shape.out[at..at + len]);
                chain.push(Descriptor::readable(*addr, bytes));
            }
            at += len;
        }
        chain.push(Descriptor::writable(slot + STATUS_OFFSET, 1));
        let head = if chained {
            self.ring.offer_indirect(slot + STATUS_OFFSET - 0x80, &chain)
        } else {
            self.ring.offer(&chain)
        };
        let descriptors = if chained { 1 } else { chain.len() };
        self.free_descriptors -= descriptors;
        let pending =
            Pending { asked, since_ns: now_ns, slot, data, wanted: shape.wanted, descriptors };
        self.outstanding.insert(head, pending);
    }

    /// Shows what was offered; whether the device wants a kick.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Notes an interrupt.
    pub(super) fn listen(&mut self) {
        self.interrupted |= self.interrupt.read().is_ok();
    }

    /// Takes what came back, and asks for an interrupt at what comes next unless it polls.
    pub(super) fn look(&mut self) -> Result<Vec<Returned>, String> {
        self.interrupted = false;
        let mut returned = Vec::new();
        loop {
            while let Some(used) = self.ring.take_used() {
                self.seen_used = self.seen_used.wrapping_add(1);
                returned.push(self.take_back(used.id, used.len)?);
            }
            if self.polls {
                self.ring.set_available_flags(1);
                return Ok(returned);
            }
            self.ring.set_available_flags(0);
            if self.event_idx {
                self.ring.set_used_event(self.seen_used);
            }
            if self.ring.used_index() == self.seen_used {
                return Ok(returned);
            }
        }
    }

    fn take_back(&mut self, id: u32, written: u32) -> Result<Returned, String> {
        let head = u16::try_from(id).map_err(|_| format!("used id {id} is no descriptor"))?;
        let pending = self
            .outstanding
            .remove(&head)
            .ok_or_else(|| format!("chain {head} came back, which is not on its way"))?;
        self.free_descriptors += pending.descriptors;
        let mut status = [0];
        self.get(pending.slot + STATUS_OFFSET, &mut status);
        let mut data = Vec::new();
        for (addr, len) in &pending.data {
            let mut piece = vec![0; *len];
            self.get(*addr, &mut piece);
            data.extend(piece);
        }
        // The memory is the driver's again: whoever still uses it finds garbage.
        self.put(pending.slot, &POISON);
        self.slots.push(pending.slot);
        let [status] = status;
        if status == NO_STATUS {
            return Err(format!("chain {head} came back without a status"));
        }
        let writable = pending.wanted + 1;
        if written as usize > writable || (status == 0 && written as usize != writable) {
            return Err(format!(
                "chain {head} came back with {written} of {writable} bytes written"
            ));
        }
        Ok(Returned { asked: pending.asked, since_ns: pending.since_ns, status, data })
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn get(&self, addr: u64, bytes: &mut [u8]) {
        self.memory.read_slice(bytes, GuestAddress(addr)).unwrap();
    }
}

/// Cuts `len` bytes into at most `most` pieces within a slot, with gaps. Half of the time
/// everything is aligned to sectors, as direct I/O wants it.
fn pieces(slot: u64, len: usize, most: usize, random: &mut Random) -> Vec<(u64, usize)> {
    if len == 0 {
        return Vec::new();
    }
    let unit = if random.coin() && len.is_multiple_of(512) { 512 } else { 1 };
    let count = random.within(1, most.clamp(1, 4)).min(len / unit);
    let mut cuts: Vec<usize> =
        (1..count).map(|_| random.within(1, (len / unit).max(2) - 1) * unit).collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    cuts.dedup();
    let lead = if unit == 512 { 0 } else { random.below(256) };
    let mut addr = slot + 512 + lead as u64;
    let mut pieces = Vec::new();
    for cut in cuts.windows(2) {
        let len = cut[1] - cut[0];
        pieces.push((addr, len));
        addr += (len + if random.coin() { unit } else { 0 }) as u64;
    }
    pieces
}

/// The shape of a discard or zeroing.
pub(super) fn range(kind: u32, first: usize, count: usize, flags: u32) -> Shape {
    let mut out = (first as u64).to_le_bytes().to_vec();
    out.extend(u32::try_from(count).unwrap().to_le_bytes());
    out.extend(flags.to_le_bytes());
    // The header's sector means nothing here.
    Shape { kind, sector: first, sectors: count, out, wanted: 0 }
}

/// The shape of a request without data for the device.
pub(super) fn bare(kind: u32, sector: usize, wanted: usize) -> Shape {
    Shape { kind, sector, sectors: wanted / 512, out: Vec::new(), wanted }
}

/// The shape of a write.
pub(super) fn write(sector: usize, out: Vec<u8>) -> Shape {
    Shape { kind: kind::OUT, sector, sectors: out.len() / 512, out, wanted: 0 }
}
