//! The front-end of the trim measurements: reads and writes on its first queue, at a fixed depth,
//! and discards one after the other on either queue.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::ours;
use driver::vhost_user::Monitor;
use driver::{Descriptor, kind};
use fixtures::PATIENCE;

/// Bytes of a transfer.
const BLOCK_BYTES: u32 = 4096;

/// Layout of the slots in guest memory: table, header, status, data.
const SLOTS: u64 = 0x10_0000;
const SLOT_BYTES: u64 = 0x2000;
const HEADER: u64 = 0x40;
const STATUS: u64 = 0x60;
const DATA: u64 = 0x1000;
/// The slot of the discards, after those of the transfers.
const DISCARD_SLOT: u64 = 32;

/// Transfers at random blocks of the first `bytes` of the disk.
#[derive(Clone, Copy)]
pub(super) struct Transfers {
    /// In flight at a time.
    pub(super) depth: u16,
    pub(super) bytes: u64,
    /// One of this many is a write; none if zero.
    pub(super) write_interval: u64,
}

/// `count` discards of `bytes`, each `stride` bytes after the one before.
#[derive(Clone, Copy)]
pub(super) struct Discards {
    pub(super) queue: usize,
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) stride: u64,
    pub(super) count: u64,
}

/// Latencies of the reads of a run, and its duration.
pub(super) struct Latencies {
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
    pub(super) duration: Duration,
}

impl Latencies {
    fn of(mut reads: Vec<Duration>, duration: Duration) -> Self {
        reads.sort_unstable();
        let us = |read: Option<&Duration>| read.map_or(f64::NAN, |read| read.as_secs_f64() * 1e6);
        Self { p99_us: us(reads.get(reads.len() * 99 / 100)), max_us: us(reads.last()), duration }
    }

    pub(super) fn ms(&self) -> f64 {
        self.duration.as_secs_f64() * 1e3
    }
}

/// See the module's documentation.
pub(super) struct DiscardLoad {
    monitor: Monitor,
    /// The call eventfd of each queue.
    call_events: Vec<File>,
    /// Submission time of each slot's transfer, and whether it is a read.
    since: Vec<(Instant, bool)>,
    /// Slot of each head by queue.
    slots: [[u64; 64]; 2],
    random: u64,
}

impl DiscardLoad {
    pub(super) fn new(monitor: Monitor) -> Result<Self> {
        let since = vec![(Instant::now(), true); usize::try_from(DISCARD_SLOT)?];
        let call_events =
            monitor.queues.iter().map(|vq| ours::own(&vq.call)).collect::<Result<_>>()?;
        Ok(Self { monitor, call_events, since, slots: [[0; 64]; 2], random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Keeps the transfers in flight until the discards complete, without discards for
    /// `min_duration`.
    pub(super) fn run(
        &mut self,
        transfers: Transfers,
        discards: Option<Discards>,
        min_duration: Duration,
    ) -> Result<Latencies> {
        let mut reads = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let mut discarded = 0;
        let mut in_flight = transfers.depth;
        (0..u64::from(in_flight)).try_for_each(|slot| self.transfer(transfers, slot))?;
        if let Some(discards) = discards {
            self.discard(discards, discarded)?;
            in_flight += 1;
        }
        let mut duration = None;
        while in_flight > 0 {
            for slot in self.wait()? {
                if slot == DISCARD_SLOT {
                    discarded += 1;
                    match discards.filter(|discards| discarded < discards.count) {
                        Some(discards) => self.discard(discards, discarded)?,
                        None => (duration, in_flight) = (Some(start.elapsed()), in_flight - 1),
                    }
                    continue;
                }
                let (since, is_read) = *self.since.get(usize::try_from(slot)?).context("a slot")?;
                if is_read {
                    reads.push(since.elapsed());
                }
                if discards.is_none() && start.elapsed() > min_duration {
                    duration.get_or_insert(start.elapsed());
                }
                if duration.is_none() {
                    self.transfer(transfers, slot)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok(Latencies::of(reads, duration.context("the run has no duration")?))
    }

    /// Submits a transfer of a random block.
    fn transfer(&mut self, transfers: Transfers, slot: u64) -> Result<()> {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let block = self.random % (transfers.bytes / u64::from(BLOCK_BYTES));
        let is_read = (self.random >> 32).checked_rem(transfers.write_interval) != Some(0);
        let at = SLOTS + slot * SLOT_BYTES + DATA;
        let (kind, data) = if is_read {
            (kind::IN, Descriptor::writable(at, BLOCK_BYTES))
        } else {
            (kind::OUT, Descriptor::readable(at, BLOCK_BYTES))
        };
        *self.since.get_mut(usize::try_from(slot)?).context("a slot")? = (Instant::now(), is_read);
        self.offer(0, slot, kind, block * u64::from(BLOCK_BYTES), data)
    }

    /// Submits a discard, the one after `discarded` others.
    fn discard(&mut self, discards: Discards, discarded: u64) -> Result<()> {
        let at = discards.start + discarded * discards.stride;
        let data = SLOTS + DISCARD_SLOT * SLOT_BYTES + DATA;
        self.monitor.memory.write_obj(at / 512, GuestAddress(data))?;
        self.monitor.memory.write_obj(discards.bytes / 512, GuestAddress(data + 8))?;
        let data = Descriptor::readable(data, 16);
        self.offer(discards.queue, DISCARD_SLOT, kind::DISCARD, 0, data)
    }

    fn offer(
        &mut self,
        queue: usize,
        slot: u64,
        kind: u32,
        at: u64,
        data: Descriptor,
    ) -> Result<()> {
        let (base, memory) = (SLOTS + slot * SLOT_BYTES, &self.monitor.memory);
        memory.write_obj(u64::from(kind), GuestAddress(base + HEADER))?;
        memory.write_obj(at / 512, GuestAddress(base + HEADER + 8))?;
        memory.write_obj(0xff_u8, GuestAddress(base + STATUS))?;
        let chain =
            [Descriptor::readable(base + HEADER, 16), data, Descriptor::writable(base + STATUS, 1)];
        let vq = self.monitor.queues.get_mut(queue).context("a queue")?;
        let head = vq.ring.offer_indirect(base, &chain);
        let slots = self.slots.get_mut(queue).context("a queue")?;
        *slots.get_mut(usize::from(head)).context("a head")? = slot;
        self.monitor.publish(queue);
        Ok(())
    }

    /// Waits until requests are used and returns their slots.
    fn wait(&mut self) -> Result<Vec<u64>> {
        loop {
            let used = self.take_used()?;
            if !used.is_empty() {
                return Ok(used);
            }
            let mut polled: Vec<_> =
                self.call_events.iter().map(|call| PollFd::new(call, PollFlags::IN)).collect();
            let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
            ensure!(
                poll(&mut polled, Some(&patience))? > 0,
                "no request is used within {PATIENCE:?}"
            );
            for mut call in &self.call_events {
                // Fails on those that are not signalled.
                let _ = call.read(&mut [0; 8]);
            }
        }
    }

    fn take_used(&mut self) -> Result<Vec<u64>> {
        let mut used = Vec::new();
        for (vq, slots) in self.monitor.queues.iter_mut().zip(&self.slots) {
            while let Some(chain) = vq.ring.take_used() {
                let slot = *slots.get(usize::try_from(chain.id)?).context("a head")?;
                let status = GuestAddress(SLOTS + slot * SLOT_BYTES + STATUS);
                let status: u8 = self.monitor.memory.read_obj(status)?;
                ensure!(status == 0, "a request failed with status {status}");
                used.push(slot);
            }
        }
        Ok(used)
    }
}
