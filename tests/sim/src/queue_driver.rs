//! The driver of one queue: submits requests in random framings and reaps completions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::{ActiveQueue, Interrupt, Queue, QueueLayout};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use driver::{Descriptor, Ring, kind};

use super::oracle::{OpId, PendingRead, Time};
use fixtures::Random;

/// Memory of each queue's ring.
const RING_BYTES: u64 = 0x1000;
/// Start of the buffers, and bytes of a request's buffers.
const BUFFERS: u64 = 0x1_0000;
const SLOT_BYTES: u64 = 0x3000;
const STATUS_OFFSET: u64 = 0x2f00;
/// Limit of sectors per transfer.
pub(super) const MAX_SECTORS: usize = 16;
/// Bytes of guest memory.
pub(super) const MEMORY_BYTES: usize = 0x10_0000;

const POISON: [u8; SLOT_BYTES as usize] = [0xa5; SLOT_BYTES as usize];
/// The status byte before the device writes it.
const NO_STATUS: u8 = 0xff;

/// A request as the oracle knows it.
pub(super) enum Expectation {
    Read { first: usize, read: PendingRead },
    Change { op: OpId, offered: Time },
    Flush { offered: Time },
    Id,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { first, .. } => write!(f, "a read of sector {first}"),
            Self::Change { op, offered } => write!(f, "operation {op} of time {offered}"),
            Self::Flush { offered } => write!(f, "a flush of time {offered}"),
            Self::Id => f.write_str("a read of the serial number"),
        }
    }
}

/// A virtio-blk request.
pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) sector: usize,
    /// Number of sectors, for the trace.
    pub(super) sectors: usize,
    /// Device-readable data.
    pub(super) data_out: Vec<u8>,
    /// Bytes of device-writable data.
    pub(super) data_in: usize,
}

/// A request whose chain is available to the device.
struct PendingRequest {
    expectation: Expectation,
    /// Time of submission.
    since_ns: u64,
    slot: u64,
    data: Vec<(u64, usize)>,
    /// Bytes of device-writable data without the status.
    data_in: usize,
    descriptors: usize,
}

/// A completed request.
pub(super) struct Completed {
    pub(super) expectation: Expectation,
    /// Time of submission.
    pub(super) since_ns: u64,
    pub(super) status: u8,
    pub(super) data: Vec<u8>,
}

/// The driver's state of a queue.
pub(super) struct QueueDriver {
    memory: GuestMemory,
    ring: Ring,
    event_idx: bool,
    indirect: bool,
    slots: Vec<u64>,
    free_descriptors: usize,
    outstanding: BTreeMap<u16, PendingRequest>,
    seen_used: u16,
    interrupt: Arc<EventFd>,
    /// Polls the used ring with interrupts suppressed.
    pub(super) polling: bool,
    /// An interrupt is pending.
    pub(super) interrupted: bool,
}

impl QueueDriver {
    /// Lays out queue `index` and makes the device's side of it.
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
            polling: false,
            interrupted: false,
        };
        (guest, active)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The outstanding requests, dropped by a reset.
    pub(super) fn into_expectations(self) -> impl Iterator<Item = Expectation> {
        self.outstanding.into_values().map(|pending| pending.expectation)
    }

    /// Whether a request in any framing fits.
    pub(super) fn has_room(&self) -> bool {
        !self.slots.is_empty() && self.free_descriptors >= if self.indirect { 1 } else { 4 }
    }

    /// Makes a request available without publishing it.
    pub(super) fn offer(
        &mut self,
        request: &Request,
        expectation: Expectation,
        now_ns: u64,
        random: &mut Random,
    ) {
        let slot = self.slots.pop().expect("has_room() is true");
        self.write_memory(slot, &POISON);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&request.kind.to_le_bytes());
        header[8..].copy_from_slice(&(request.sector as u64).to_le_bytes());
        self.write_memory(slot, &header);
        self.write_memory(slot + STATUS_OFFSET, &[NO_STATUS]);
        let indirect = self.indirect && (self.free_descriptors < 4 || random.coin());
        let limit = if indirect { 5 } else { self.free_descriptors - 2 };
        let data = pieces(slot, request.data_out.len().max(request.data_in), limit, random);
        let mut chain = vec![Descriptor::readable(slot, 16)];
        let mut at = 0;
        for (addr, len) in &data {
            let bytes = u32::try_from(*len).unwrap();
            if request.data_in > 0 {
                chain.push(Descriptor::writable(*addr, bytes));
            } else {
                self.write_memory(*addr, &request.data_out[at..at + len]);
                chain.push(Descriptor::readable(*addr, bytes));
            }
            at += len;
        }
        chain.push(Descriptor::writable(slot + STATUS_OFFSET, 1));
        let head = if indirect {
            self.ring.offer_indirect(slot + STATUS_OFFSET - 0x80, &chain)
        } else {
            self.ring.offer(&chain)
        };
        let descriptors = if indirect { 1 } else { chain.len() };
        self.free_descriptors -= descriptors;
        let pending = PendingRequest {
            expectation,
            since_ns: now_ns,
            slot,
            data,
            data_in: request.data_in,
            descriptors,
        };
        self.outstanding.insert(head, pending);
    }

    /// Publishes the available chains; returns whether the device needs a kick.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Records a pending interrupt.
    pub(super) fn poll_interrupt(&mut self) {
        self.interrupted |= self.interrupt.read().is_ok();
    }

    /// Reaps all completions and requests an interrupt for the next one, unless it polls.
    pub(super) fn reap(&mut self) -> Result<Vec<Completed>, String> {
        self.interrupted = false;
        let mut completed = Vec::new();
        loop {
            while let Some(used) = self.ring.take_used() {
                self.seen_used = self.seen_used.wrapping_add(1);
                completed.push(self.complete(used.id, used.len)?);
            }
            if self.polling {
                self.ring.set_available_flags(1);
                return Ok(completed);
            }
            self.ring.set_available_flags(0);
            if self.event_idx {
                self.ring.set_used_event(self.seen_used);
            }
            if self.ring.used_index() == self.seen_used {
                return Ok(completed);
            }
        }
    }

    fn complete(&mut self, id: u32, written: u32) -> Result<Completed, String> {
        let head = u16::try_from(id).map_err(|_| format!("used id {id} is not a descriptor"))?;
        let pending = self
            .outstanding
            .remove(&head)
            .ok_or_else(|| format!("chain {head} is used but not outstanding"))?;
        self.free_descriptors += pending.descriptors;
        let mut status = [0];
        self.read_memory(pending.slot + STATUS_OFFSET, &mut status);
        let mut data = Vec::new();
        for (addr, len) in &pending.data {
            let mut piece = vec![0; *len];
            self.read_memory(*addr, &mut piece);
            data.extend(piece);
        }
        // The driver owns the memory again: a device that still uses it reads garbage.
        self.write_memory(pending.slot, &POISON);
        self.slots.push(pending.slot);
        let [status] = status;
        if status == NO_STATUS {
            return Err(format!("chain {head} is used without a status"));
        }
        let writable = pending.data_in + 1;
        if written as usize > writable || (status == 0 && written as usize != writable) {
            return Err(format!("chain {head} is used with {written} of {writable} bytes written"));
        }
        Ok(Completed { expectation: pending.expectation, since_ns: pending.since_ns, status, data })
    }

    fn write_memory(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn read_memory(&self, addr: u64, bytes: &mut [u8]) {
        self.memory.read_slice(bytes, GuestAddress(addr)).unwrap();
    }
}

/// Divides `len` bytes into at most `limit` buffers of a slot, with gaps. Half of the time all are
/// aligned to sectors, as direct I/O requires.
fn pieces(slot: u64, len: usize, limit: usize, random: &mut Random) -> Vec<(u64, usize)> {
    if len == 0 {
        return Vec::new();
    }
    let unit = if random.coin() && len.is_multiple_of(512) { 512 } else { 1 };
    let count = random.within(1, limit.clamp(1, 4)).min(len / unit);
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

/// A DISCARD or WRITE_ZEROES.
pub(super) fn range(kind: u32, first: usize, count: usize, flags: u32) -> Request {
    let mut data_out = (first as u64).to_le_bytes().to_vec();
    data_out.extend(u32::try_from(count).unwrap().to_le_bytes());
    data_out.extend(flags.to_le_bytes());
    // The header's sector is unused.
    Request { kind, sector: first, sectors: count, data_out, data_in: 0 }
}

/// A request without device-readable data.
pub(super) fn bare(kind: u32, sector: usize, data_in: usize) -> Request {
    Request { kind, sector, sectors: data_in / 512, data_out: Vec::new(), data_in }
}

/// A write.
pub(super) fn write(sector: usize, data_out: Vec<u8>) -> Request {
    Request { kind: kind::OUT, sector, sectors: data_out.len() / 512, data_out, data_in: 0 }
}
