//! The load generator: a virtio-blk driver that does what a guest's does per request, and nothing
//! else. It drives this stack and QEMU's storage daemon.
//!
//! Each slot is one descriptor of an indirect table of three (header, data, status), as in Linux'
//! driver. It requests interrupts with `EVENT_IDX`, sleeps in one `read` of the interrupt's
//! eventfd, reaps all completions and submits as many requests with at most one kick. One thread,
//! no allocation while it measures.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devices::GuestMemory;
use devices::virtio::QueueLayout;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vm_memory::{AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::workload::{Cpus, Direction, Order, Workload};
use driver::{Descriptor, kind};

/// KVM's polling time of a halted vCPU: the default of `halt_poll_ns` on x86.
const HALT_POLL: Duration = Duration::from_micros(200);
/// Guest memory: 32 MiB from address 0.
pub(super) const MEMORY_BYTES: usize = 32 << 20;
/// Entries of the queue, the device's maximum.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Layout of the ring.
pub(super) const LAYOUT: QueueLayout =
    QueueLayout { size: QUEUE_SIZE, descriptors: 0x1000, available: 0x3000, used: 0x4000 };
const AVAILABLE_INDEX: usize = 0x3002;
const AVAILABLE_RING: usize = 0x3004;
const USED_EVENT: usize = AVAILABLE_RING + 2 * QUEUE_SIZE as usize;
const USED_INDEX: usize = 0x4002;
const USED_RING: usize = 0x4004;
const AVAILABLE_EVENT: usize = USED_RING + 8 * QUEUE_SIZE as usize;
/// The slots: a table of 48 bytes, then header and status.
const TABLES: usize = 0x1_0000;
const SLOT_BYTES: usize = 128;
const HEADER: usize = 48;
const SECTOR: usize = HEADER + 8;
const STATUS: usize = 64;
/// Data of the slots.
const DATA: usize = 0x10_0000;

/// The status byte before the device writes it.
const NO_STATUS: u8 = 0xff;
const SECTOR_BYTES: u64 = 512;

/// Guest memory as `bulkhead` makes it: private, with transparent huge pages, populated.
pub(super) fn guest_memory() -> Result<GuestMemory> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    let start = memory.get_host_address(GuestAddress(0))?;
    // SAFETY: the range is exactly the one just mapped, and the advice changes no contents.
    unsafe {
        rustix::mm::madvise(start.cast(), MEMORY_BYTES, rustix::mm::Advice::LinuxHugepage)?;
    }
    populate(memory)
}

/// Guest memory that another process can map: a memfd.
pub(super) fn shared_guest_memory() -> Result<GuestMemory> {
    let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(MEMORY_BYTES as u64)?;
    let range = (GuestAddress(0), MEMORY_BYTES, Some(FileOffset::new(file, 0)));
    populate(GuestMemory::from_ranges_with_files([range])?)
}

fn populate(memory: GuestMemory) -> Result<GuestMemory> {
    memory.write_slice(&vec![0; MEMORY_BYTES], GuestAddress(0))?;
    Ok(memory)
}

/// The eventfds of the queue.
pub(super) struct Events {
    /// Written by the driver.
    pub(super) kick: File,
    /// Read by the driver, blocking.
    pub(super) interrupt: File,
}

/// Completed requests and elapsed time of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throughput {
    pub(super) requests: u64,
    pub(super) elapsed: Duration,
}

/// The driver's state of the queue.
pub(super) struct LoadDriver<'m> {
    memory: VolatileSlice<'m>,
    events: Events,
    offsets: Offsets,
    depth: u16,
    next_available: u16,
    published: u16,
    next_used: u16,
    /// Free slots. The most recent is submitted first, as in fio and memory allocators: its buffer
    /// is the most likely to be cached.
    free: Vec<u16>,
    halt_poll: Duration,
    /// Number of kicks so far.
    pub(super) kicks: u64,
}

impl<'m> LoadDriver<'m> {
    /// Lays out the slots of `workload` for a disk of `capacity` bytes. The device must start with
    /// an empty ring.
    pub(super) fn new(
        memory: &'m GuestMemory,
        events: Events,
        workload: &Workload,
        capacity: u64,
    ) -> Result<Self> {
        let slice = memory.get_slice(GuestAddress(0), MEMORY_BYTES)?;
        let driver = Self {
            memory: slice,
            events,
            offsets: Offsets::new(workload, capacity),
            depth: workload.depth,
            next_available: 0,
            published: 0,
            next_used: 0,
            free: Vec::with_capacity(usize::from(workload.depth)),
            halt_poll: if workload.cpus == Cpus::Two { HALT_POLL } else { Duration::ZERO },
            kicks: 0,
        };
        slice.subslice(0, TABLES)?.write_slice(&vec![0; TABLES], 0)?;
        for slot in 0..workload.depth {
            driver.lay_out(slot, workload)?;
        }
        Ok(driver)
    }

    /// Writes the constant part of a slot.
    fn lay_out(&self, slot: u16, workload: &Workload) -> Result<()> {
        let (at, bytes) = (table(slot), workload.block_bytes);
        let data = DATA + usize::from(slot) * bytes as usize;
        ensure!(
            data + bytes as usize <= MEMORY_BYTES,
            "the guest's memory is too small for {workload:?}"
        );
        let (kind, data) = match workload.direction {
            Direction::Read => (kind::IN, Descriptor::writable(data as u64, bytes)),
            Direction::Write => (kind::OUT, Descriptor::readable(data as u64, bytes)),
        };
        let chain = [
            Descriptor::readable((at + HEADER) as u64, 16).then(1),
            data.then(2),
            Descriptor::writable((at + STATUS) as u64, 1),
        ];
        for (index, descriptor) in chain.iter().enumerate() {
            self.memory.write_slice(&descriptor.bytes(), at + 16 * index)?;
        }
        self.memory.write_slice(&kind.to_le_bytes(), at + HEADER)?;
        let pointer = Descriptor::indirect(at as u64, 48);
        let entry = usize::try_from(LAYOUT.descriptors)? + 16 * usize::from(slot);
        self.memory.write_slice(&pointer.bytes(), entry)?;
        Ok(())
    }

    /// Keeps `depth` requests in flight for `duration`, then waits for them.
    pub(super) fn run(&mut self, duration: Duration) -> Result<Throughput> {
        self.run_paced(duration, Duration::ZERO)
    }

    /// As `run`, with a sleep of `pause` before each reap.
    pub(super) fn run_paced(&mut self, duration: Duration, pause: Duration) -> Result<Throughput> {
        let start = Instant::now();
        let mut requests = 0;
        self.offer_all()?;
        while start.elapsed() < duration {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            self.wait_used()?;
            requests += self.reap_and_resubmit()?;
        }
        let elapsed = start.elapsed();
        while self.next_used != self.next_available {
            self.wait_used()?;
            self.take_used()?;
        }
        self.free.clear();
        Ok(Throughput { requests, elapsed })
    }

    /// Submits a request in each slot.
    pub(super) fn offer_all(&mut self) -> Result<()> {
        for slot in 0..self.depth {
            self.offer(slot)?;
        }
        self.publish()
    }

    /// Reaps completions, submits as many requests and returns their number.
    pub(super) fn reap_and_resubmit(&mut self) -> Result<u64> {
        let taken = self.take_used()?;
        while let Some(slot) = self.free.pop() {
            self.offer(slot)?;
        }
        self.publish()?;
        Ok(taken)
    }

    fn offer(&mut self, slot: u16) -> Result<()> {
        let at = table(slot);
        self.memory.store(
            (self.offsets.next() / SECTOR_BYTES).to_le(),
            at + SECTOR,
            Ordering::Relaxed,
        )?;
        self.memory.store(NO_STATUS, at + STATUS, Ordering::Relaxed)?;
        let position = usize::from(self.next_available % QUEUE_SIZE);
        self.memory.store(slot.to_le(), AVAILABLE_RING + 2 * position, Ordering::Relaxed)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    /// Publishes the available chains and kicks unless suppressed (Virtio 1.2 §2.7.13.4.1).
    fn publish(&mut self) -> Result<()> {
        let (old, new) = (self.published, self.next_available);
        self.memory.store(new.to_le(), AVAILABLE_INDEX, Ordering::Release)?;
        self.published = new;
        fence(Ordering::SeqCst);
        let event: u16 = self.load(AVAILABLE_EVENT)?;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kicks += 1;
            self.events.kick.write_all(&1u64.to_ne_bytes()).context("kicking the queue")?;
        }
        Ok(())
    }

    fn used_index(&self) -> io::Result<u16> {
        self.load(USED_INDEX)
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> io::Result<T> {
        self.memory.load(at, Ordering::Acquire).map_err(io::Error::other)
    }

    /// Reaps completions and returns their number.
    fn take_used(&mut self) -> Result<u64> {
        let used = self.used_index()?;
        let mut taken = 0;
        while self.next_used != used {
            let position = usize::from(self.next_used % QUEUE_SIZE);
            let slot = u16::try_from(self.load::<u32>(USED_RING + 8 * position)?)?;
            let status: u8 = self.load(table(slot) + STATUS)?;
            ensure!(status == 0, "a request ended with status {status}");
            self.next_used = self.next_used.wrapping_add(1);
            taken += 1;
            self.free.push(slot);
        }
        Ok(taken)
    }

    /// Sleeps until a chain is used.
    fn wait_used(&mut self) -> Result<()> {
        while self.used_index()? == self.next_used {
            self.memory.store(self.next_used.to_le(), USED_EVENT, Ordering::Relaxed)?;
            // used_event must be visible before the index is read, or both sides wait (§2.7.7.1).
            fence(Ordering::SeqCst);
            if self.used_index()? == self.next_used && !self.poll_interrupt()? {
                self.events
                    .interrupt
                    .read_exact(&mut [0; 8])
                    .context("waiting for an interrupt")?;
            }
        }
        Ok(())
    }

    /// Polls for the interrupt for `halt_poll`; returns whether it came.
    fn poll_interrupt(&self) -> Result<bool> {
        let start = Instant::now();
        let mut count = [0; 8];
        while start.elapsed() < self.halt_poll {
            let count = &mut [IoSliceMut::new(&mut count)];
            match preadv2(&self.events.interrupt, count, u64::MAX, ReadWriteFlags::NOWAIT) {
                Ok(_) => return Ok(true),
                Err(Errno::AGAIN) => {}
                Err(error) => bail!("polling for an interrupt: {error}"),
            }
        }
        Ok(false)
    }

    /// Requests an interrupt at the next used chain.
    pub(super) fn arm_interrupt(&self) -> Result<()> {
        Ok(self.memory.store(self.next_used.to_le(), USED_EVENT, Ordering::SeqCst)?)
    }
}

/// Address of a slot's table.
fn table(slot: u16) -> usize {
    TABLES + SLOT_BYTES * usize::from(slot)
}

/// The sequence of offsets.
struct Offsets {
    order: Order,
    block_bytes: u64,
    blocks: u64,
    state: u64,
}

impl Offsets {
    fn new(workload: &Workload, capacity: u64) -> Self {
        let block_bytes = u64::from(workload.block_bytes);
        let state = match workload.order {
            Order::Random => 0x9e37_79b9_7f4a_7c15,
            Order::Sequential | Order::Scattered => 0,
        };
        Self { order: workload.order, block_bytes, blocks: capacity / block_bytes, state }
    }

    /// The next offset in bytes.
    fn next(&mut self) -> u64 {
        let block = match self.order {
            Order::Random => {
                // xorshift64
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.state % self.blocks
            }
            Order::Sequential => {
                self.state = (self.state + 1) % self.blocks;
                self.state
            }
            Order::Scattered => {
                self.state += 1;
                // Any odd factor permutes the blocks; this one keeps neighbours far apart.
                self.state.wrapping_mul(0x9e37_79b9) % self.blocks
            }
        };
        block * self.block_bytes
    }
}
