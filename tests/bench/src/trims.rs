//! `bench trims`: latency of reads while another range of the disk is discarded, compared with
//! reads alone.
//!
//! `bulkhead serve` with cache mode `none`, under a vhost-user front-end in this process. The
//! images are fragmented, so that freeing them is costly.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::host::{self, InMemory, LoopDevice};
use super::ours;
use super::report::median;
use driver::vhost_user::Monitor;
use driver::{Descriptor, feature, kind};
use fixtures::PATIENCE;
use lab::ServeProcess;

const MIB: u64 = 1 << 20;
/// Range of the reads, at the start of the disk.
const READ_BYTES: u64 = 256 * MIB;
/// Range of the discards, after that of the reads.
const DISCARDED_BYTES: u64 = 64 * MIB;
/// Bytes of one discard request.
const DISCARD_BYTES: u64 = 32 * MIB;
/// Size of the image's extents.
const EXTENT_BYTES: u64 = 16 << 10;
const BLOCK_BYTES: u32 = 4096;
/// Minimum duration of a run without discards.
const MIN_DURATION: Duration = Duration::from_millis(300);
const DEPTHS: [u16; 3] = [1, 8, 32];

/// Layout of the slots in guest memory: table, header, status, data.
const SLOTS: u64 = 0x10_0000;
const SLOT_BYTES: u64 = 0x2000;
const HEADER: u64 = 0x40;
const STATUS: u64 = 0x60;
const DATA: u64 = 0x1000;
/// The slot of the discards, after those of the reads.
const DISCARD_SLOT: u64 = 32;

/// Prints a table by store, queue and queue depth; each figure is the median of `pairs` alternating
/// pairs.
///
/// # Errors
///
/// If a system call or a request fails.
pub(crate) fn trims(pairs: usize, only: Option<&str>) -> Result<()> {
    let folder = host::folder();
    InMemory::unmount_leftovers(&folder)?;
    host::raise_priority();
    println!("{}; medians of {pairs} pairs\n", host::describe(&folder)?);
    println!(
        "{:<8}{:>6}{:>4}{:>12}{:>12}{:>8}{:>12}{:>12}{:>14}{:>14}",
        "store",
        "queue",
        "QD",
        "p99 us",
        "with trim",
        "ratio",
        "max us",
        "with trim",
        "trim alone ms",
        "with reads ms"
    );
    for store in
        ["xfs", "ext4", "loop", "disk"].into_iter().filter(|s| only.is_none_or(|only| only == *s))
    {
        let disk = Disk::make(&folder, store)?;
        for trim_queue in [0, 1] {
            for depth in DEPTHS {
                let pairs = (0..pairs).map(|_| Pair::measure(&disk, depth, trim_queue));
                show(store, trim_queue, depth, &pairs.collect::<Result<Vec<_>>>()?);
            }
        }
    }
    Ok(())
}

fn show(store: &str, trim_queue: usize, depth: u16, pairs: &[Pair]) {
    let of = |figure: fn(&Pair) -> f64| median(pairs.iter().map(figure));
    println!(
        "{store:<8}{:>6}{depth:>4}{:>12.0}{:>12.0}{:>8.2}{:>12.0}{:>12.0}{:>14.0}{:>14.0}",
        if trim_queue == 0 { "same" } else { "other" },
        of(|pair| pair.without.p99_us),
        of(|pair| pair.with.p99_us),
        of(|pair| pair.with.p99_us / pair.without.p99_us),
        of(|pair| pair.without.max_us),
        of(|pair| pair.with.max_us),
        of(|pair| pair.alone.ms()),
        of(|pair| pair.with.ms()),
    );
}

/// A disk served by `bulkhead serve`.
struct Disk {
    image: PathBuf,
    served: ServeProcess,
    _mounted: Option<InMemory>,
}

impl Disk {
    fn make(folder: &Path, store: &str) -> Result<Self> {
        let mounted = match store {
            "disk" => None,
            "xfs" => Some(InMemory::mount(folder, "xfs")?),
            _ => Some(InMemory::mount(folder, "ext4")?),
        };
        let image = mounted.as_ref().map_or(folder, InMemory::folder).join("trims.img");
        File::create(&image)?.set_len(READ_BYTES + DISCARDED_BYTES)?;
        fill(&image, 0, READ_BYTES)?;
        let device =
            (store == "loop").then(|| LoopDevice::over(&image, &["--direct-io=on"])).transpose()?;
        let path = device.as_ref().map_or(image.as_path(), LoopDevice::path);
        let served = ServeProcess::start_at(path, "cache = \"none\"\nqueues = 2");
        // Only the program keeps the device open now, even if this process is killed.
        drop(device);
        Ok(Self { image, served, _mounted: mounted })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.image);
    }
}

/// Allocates a range of a file in extents that are not contiguous.
fn fill(image: &Path, start: u64, bytes: u64) -> Result<()> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = File::options().write(true).custom_flags(direct).open(image)?;
    let extent = usize::try_from(EXTENT_BYTES)?;
    let mut data = vec![0xa5; 2 * extent];
    let at = data.as_ptr().align_offset(4096);
    let data = data.get_mut(at..at + extent).context("an aligned part")?;
    for first in [0, EXTENT_BYTES] {
        for at in (first..bytes).step_by(2 * extent) {
            file.write_all_at(data, start + at)?;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Reads without and with a concurrent trim, and a trim without reads.
struct Pair {
    without: Latencies,
    with: Latencies,
    alone: Latencies,
}

impl Pair {
    fn measure(disk: &Disk, depth: u16, trim_queue: usize) -> Result<Self> {
        let features = feature::INDIRECT_DESC;
        let mut load = DiscardLoad::new(Monitor::start(&disk.served.socket(), 2, features, false))?;
        let mut run = |depth, trim: bool, min_duration: Duration| {
            if trim {
                fill(&disk.image, READ_BYTES, DISCARDED_BYTES)?;
            }
            let before = allocated(&disk.image)?;
            let run = load.run(depth, trim.then_some(trim_queue), min_duration)?;
            let freed = before.saturating_sub(allocated(&disk.image)?);
            let expected = if trim { DISCARDED_BYTES } else { 0 };
            ensure!(freed >= expected, "only {freed} bytes are freed");
            Ok(run)
        };
        let alone = run(0, true, Duration::ZERO)?;
        let with = run(depth, true, Duration::ZERO)?;
        let without = run(depth, false, with.duration.max(MIN_DURATION))?;
        Ok(Self { without, with, alone })
    }
}

/// Bytes allocated to a file.
fn allocated(image: &Path) -> Result<u64> {
    Ok(fs::metadata(image)?.blocks() * 512)
}

/// Latencies of the reads of a run, and its duration.
struct Latencies {
    p99_us: f64,
    max_us: f64,
    duration: Duration,
}

impl Latencies {
    fn of(mut reads: Vec<Duration>, duration: Duration) -> Self {
        reads.sort_unstable();
        let us = |read: Option<&Duration>| read.map_or(f64::NAN, |read| read.as_secs_f64() * 1e6);
        Self { p99_us: us(reads.get(reads.len() * 99 / 100)), max_us: us(reads.last()), duration }
    }

    fn ms(&self) -> f64 {
        self.duration.as_secs_f64() * 1e3
    }
}

/// A front-end that reads on its first queue and discards on either.
struct DiscardLoad {
    monitor: Monitor,
    /// The call eventfd of each queue.
    call_events: Vec<File>,
    /// Submission time of each slot's read.
    since: Vec<Instant>,
    /// Slot of each head by queue.
    slots: [[u64; 64]; 2],
    random: u64,
}

impl DiscardLoad {
    fn new(monitor: Monitor) -> Result<Self> {
        let since = vec![Instant::now(); usize::try_from(DISCARD_SLOT)?];
        let call_events =
            monitor.queues.iter().map(|vq| ours::own(&vq.call)).collect::<Result<_>>()?;
        Ok(Self { monitor, call_events, since, slots: [[0; 64]; 2], random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Keeps `depth` reads in flight until the discards complete, without discards for
    /// `min_duration`.
    fn run(
        &mut self,
        depth: u16,
        trim_queue: Option<usize>,
        min_duration: Duration,
    ) -> Result<Latencies> {
        let mut reads = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let mut discarded = 0;
        let mut in_flight = depth;
        (0..u64::from(depth)).try_for_each(|slot| self.read(slot))?;
        if let Some(queue) = trim_queue {
            self.discard(queue, discarded)?;
            in_flight += 1;
        }
        let mut duration = None;
        while in_flight > 0 {
            for slot in self.wait()? {
                if slot == DISCARD_SLOT {
                    discarded += DISCARD_BYTES;
                    match trim_queue.filter(|_| discarded < DISCARDED_BYTES) {
                        Some(queue) => self.discard(queue, discarded)?,
                        None => (duration, in_flight) = (Some(start.elapsed()), in_flight - 1),
                    }
                    continue;
                }
                reads.push(self.since.get(usize::try_from(slot)?).context("a slot")?.elapsed());
                if trim_queue.is_none() && start.elapsed() > min_duration {
                    duration.get_or_insert(start.elapsed());
                }
                if duration.is_none() { self.read(slot)? } else { in_flight -= 1 }
            }
        }
        Ok(Latencies::of(reads, duration.context("the run has no duration")?))
    }

    fn read(&mut self, slot: u64) -> Result<()> {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let block = self.random % (READ_BYTES / u64::from(BLOCK_BYTES));
        let data = Descriptor::writable(SLOTS + slot * SLOT_BYTES + DATA, BLOCK_BYTES);
        *self.since.get_mut(usize::try_from(slot)?).context("a slot")? = Instant::now();
        self.offer(0, slot, kind::IN, block * u64::from(BLOCK_BYTES), data)
    }

    /// Submits the next discard of the range.
    fn discard(&mut self, queue: usize, discarded: u64) -> Result<()> {
        let (at, data) = (READ_BYTES + discarded, SLOTS + DISCARD_SLOT * SLOT_BYTES + DATA);
        let bytes = DISCARD_BYTES.min(DISCARDED_BYTES - discarded);
        self.monitor.memory.write_obj(at / 512, GuestAddress(data))?;
        self.monitor.memory.write_obj(bytes / 512, GuestAddress(data + 8))?;
        self.offer(queue, DISCARD_SLOT, kind::DISCARD, 0, Descriptor::readable(data, 16))
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
