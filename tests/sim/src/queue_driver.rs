//! The driver of one queue: submits requests in random framings and reaps completions.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::{ActiveQueue, Interrupt, Queue, QueueLayout};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use driver::{Descriptor, Ring};

use fixtures::Random;

/// Memory of each queue's ring.
const RING_BYTES: u64 = 0x1000;
/// Start of the buffers, and bytes of a request's buffers.
const BUFFERS: u64 = 0x1_0000;
const SLOT_BYTES: u64 = 0x3000;
const ANSWER_OFFSET: u64 = 0x2f00;
/// Limit of sectors per transfer.
pub(super) const MAX_SECTORS: usize = 16;
/// Bytes of guest memory.
pub(super) const MEMORY_BYTES: usize = 0x10_0000;

const POISON: [u8; SLOT_BYTES as usize] = [0xa5; SLOT_BYTES as usize];
/// The bytes of an answer before the device writes them.
pub(super) const NO_ANSWER: u8 = 0xff;

/// The buffers of a request.
pub(super) struct Framed {
    /// Device-readable header.
    pub(super) header: Vec<u8>,
    /// Device-readable data.
    pub(super) data_out: Vec<u8>,
    /// Bytes of device-writable data.
    pub(super) data_in: usize,
    /// The device-writable buffer of the answer.
    pub(super) answer: Answer,
}

/// The place of an answer among the device-writable buffers, and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    BeforeData(usize),
    BehindData(usize),
}

impl Answer {
    fn len(self) -> usize {
        let (Self::BeforeData(len) | Self::BehindData(len)) = self;
        len
    }
}

/// A request whose chain is available to the device.
struct PendingRequest<E> {
    expectation: E,
    /// Time of submission.
    since_ns: u64,
    slot: u64,
    data: Vec<(u64, usize)>,
    /// Bytes of device-writable data without the answer.
    data_in: usize,
    answer: usize,
    descriptors: usize,
}

/// A completed request.
pub(super) struct Completed<E> {
    pub(super) expectation: E,
    /// Time of submission.
    pub(super) since_ns: u64,
    pub(super) answer: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// Bytes that the device has written by its account, and those that it may write.
    pub(super) written: usize,
    pub(super) writable: usize,
}

/// The driver's state of a queue. It keeps an `E` for each request.
pub(super) struct QueueDriver<E> {
    memory: GuestMemory,
    ring: Ring,
    event_idx: bool,
    indirect: bool,
    slots: Vec<u64>,
    free_descriptors: usize,
    outstanding: BTreeMap<u16, PendingRequest<E>>,
    seen_used: u16,
    interrupt: Arc<EventFd>,
    /// Polls the used ring with interrupts suppressed.
    pub(super) polling: bool,
    /// An interrupt is pending.
    pub(super) interrupted: bool,
}

impl<E> QueueDriver<E> {
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

    /// The outstanding requests.
    pub(super) fn expectations(&self) -> impl Iterator<Item = &E> {
        self.outstanding.values().map(|pending| &pending.expectation)
    }

    /// The outstanding requests, dropped by a reset.
    pub(super) fn into_expectations(self) -> impl Iterator<Item = E> {
        self.outstanding.into_values().map(|pending| pending.expectation)
    }

    /// Whether a request in any framing fits.
    pub(super) fn has_room(&self) -> bool {
        !self.slots.is_empty() && self.free_descriptors >= if self.indirect { 1 } else { 4 }
    }

    /// Makes a request available without publishing it.
    pub(super) fn offer(
        &mut self,
        request: &Framed,
        expectation: E,
        now_ns: u64,
        random: &mut Random,
    ) {
        let slot = self.slots.pop().expect("has_room() is true");
        self.write_memory(slot, &POISON);
        self.write_memory(slot, &request.header);
        let answer = vec![NO_ANSWER; request.answer.len()];
        self.write_memory(slot + ANSWER_OFFSET, &answer);
        let indirect = self.indirect && (self.free_descriptors < 4 || random.coin());
        let limit = if indirect { 5 } else { self.free_descriptors - 2 };
        let data = pieces(slot, request.data_out.len().max(request.data_in), limit, random);
        let bytes = |len: usize| u32::try_from(len).unwrap();
        let answer = Descriptor::writable(slot + ANSWER_OFFSET, bytes(request.answer.len()));
        let mut chain = vec![Descriptor::readable(slot, bytes(request.header.len()))];
        if request.data_in > 0 && matches!(request.answer, Answer::BeforeData(_)) {
            chain.push(answer);
        }
        let mut at = 0;
        for (addr, len) in &data {
            if request.data_in > 0 {
                chain.push(Descriptor::writable(*addr, bytes(*len)));
            } else {
                self.write_memory(*addr, &request.data_out[at..at + len]);
                chain.push(Descriptor::readable(*addr, bytes(*len)));
            }
            at += len;
        }
        if request.data_in == 0 || matches!(request.answer, Answer::BehindData(_)) {
            chain.push(answer);
        }
        let head = if indirect {
            self.ring.offer_indirect(slot + ANSWER_OFFSET - 0x80, &chain)
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
            answer: request.answer.len(),
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
    pub(super) fn reap(&mut self) -> Result<Vec<Completed<E>>, String> {
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

    fn complete(&mut self, id: u32, written: u32) -> Result<Completed<E>, String> {
        let head = u16::try_from(id).map_err(|_| format!("used id {id} is not a descriptor"))?;
        let pending = self
            .outstanding
            .remove(&head)
            .ok_or_else(|| format!("chain {head} is used but not outstanding"))?;
        self.free_descriptors += pending.descriptors;
        let mut answer = vec![0; pending.answer];
        self.read_memory(pending.slot + ANSWER_OFFSET, &mut answer);
        let mut data = Vec::new();
        for (addr, len) in &pending.data {
            let mut piece = vec![0; *len];
            self.read_memory(*addr, &mut piece);
            data.extend(piece);
        }
        // The driver owns the memory again: a device that still uses it reads garbage.
        self.write_memory(pending.slot, &POISON);
        self.slots.push(pending.slot);
        let (written, writable) = (written as usize, pending.data_in + pending.answer);
        if written > writable {
            return Err(format!("chain {head} is used with {written} of {writable} bytes written"));
        }
        let PendingRequest { expectation, since_ns, .. } = pending;
        Ok(Completed { expectation, since_ns, answer, data, written, writable })
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
