//! `bench trims`: how long reads take while another part of their disk is discarded, beside how
//! long they take without.
//!
//! `bulkhead serve` with the cache mode `none`, under a frontend in this process that sleeps until
//! it is called. The files are fragmented, so that to free them costs something.

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
/// What is read from, at the start of each disk.
const READ_BYTES: u64 = 256 * MIB;
/// What is discarded, behind it.
const TRIMMED_BYTES: u64 = 64 * MIB;
/// What one request discards.
const DISCARD_BYTES: u64 = 32 * MIB;
/// Extents of the file.
const EXTENT_BYTES: u64 = 16 << 10;
const BLOCK_BYTES: u32 = 4096;
/// The shortest run of reads alone.
const SHORTEST: Duration = Duration::from_millis(300);
const DEPTHS: [u16; 3] = [1, 8, 32];

/// Where requests lie in the guest's memory: each slot has a table, a header, a status and data.
const SLOTS: u64 = 0x10_0000;
const SLOT_BYTES: u64 = 0x2000;
const HEADER: u64 = 0x40;
const STATUS: u64 = 0x60;
const DATA: u64 = 0x1000;
/// The slot of the discards, behind those of the reads.
const DISCARDING: u64 = 32;

/// Prints a table over stores, queues and queue depths, each figure the median of so many
/// alternating pairs.
///
/// # Errors
///
/// When the host refuses something, or a request fails.
pub(crate) fn trims(pairs: usize, only: Option<&str>) -> Result<()> {
    let folder = host::folder();
    InMemory::take_down(&folder)?;
    host::take_precedence();
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

/// A disk that `bulkhead serve` has open.
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
        File::create(&image)?.set_len(READ_BYTES + TRIMMED_BYTES)?;
        fill(&image, 0, READ_BYTES)?;
        let device =
            (store == "loop").then(|| LoopDevice::over(&image, &["--direct-io=on"])).transpose()?;
        let path = device.as_ref().map_or(image.as_path(), LoopDevice::path);
        let served = ServeProcess::start_at(path, "cache = \"none\"\nqueues = 2");
        // From here on the device is only the program's, also where this process is killed.
        drop(device);
        Ok(Self { image, served, _mounted: mounted })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.image);
    }
}

/// Allocates a range of a file in extents that do not lie one behind the other.
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

/// What was measured without and with a trim, and how long that takes without reads.
struct Pair {
    without: Run,
    with: Run,
    alone: Run,
}

impl Pair {
    fn measure(disk: &Disk, depth: u16, trim_queue: usize) -> Result<Self> {
        let features = feature::INDIRECT_DESC;
        let mut player = Player::new(Monitor::start(&disk.served.socket(), 2, features, false))?;
        let mut run = |depth, trim: bool, shortest: Duration| {
            if trim {
                fill(&disk.image, READ_BYTES, TRIMMED_BYTES)?;
            }
            let before = allocated(&disk.image)?;
            let run = player.run(depth, trim.then_some(trim_queue), shortest)?;
            let freed = before.saturating_sub(allocated(&disk.image)?);
            let expected = if trim { TRIMMED_BYTES } else { 0 };
            ensure!(freed >= expected, "{freed} bytes were freed");
            Ok(run)
        };
        let alone = run(0, true, Duration::ZERO)?;
        let with = run(depth, true, Duration::ZERO)?;
        let without = run(depth, false, with.took.max(SHORTEST))?;
        Ok(Self { without, with, alone })
    }
}

/// Bytes that a file takes.
fn allocated(image: &Path) -> Result<u64> {
    Ok(fs::metadata(image)?.blocks() * 512)
}

/// How long reads took, while something took so long.
struct Run {
    p99_us: f64,
    max_us: f64,
    took: Duration,
}

impl Run {
    fn of(mut reads: Vec<Duration>, took: Duration) -> Self {
        reads.sort_unstable();
        let us = |read: Option<&Duration>| read.map_or(f64::NAN, |read| read.as_secs_f64() * 1e6);
        Self { p99_us: us(reads.get(reads.len() * 99 / 100)), max_us: us(reads.last()), took }
    }

    fn ms(&self) -> f64 {
        self.took.as_secs_f64() * 1e3
    }
}

/// A frontend with reads on its first queue and discards on any.
struct Player {
    monitor: Monitor,
    /// The device's calls, by queue.
    calls: Vec<File>,
    /// When the read of each slot was shown to the device.
    since: Vec<Instant>,
    /// The slot of each head, by queue.
    slots: [[u64; 64]; 2],
    random: u64,
}

impl Player {
    fn new(monitor: Monitor) -> Result<Self> {
        let since = vec![Instant::now(); usize::try_from(DISCARDING)?];
        let calls = monitor.queues.iter().map(|vq| ours::own(&vq.call)).collect::<Result<_>>()?;
        Ok(Self { monitor, calls, since, slots: [[0; 64]; 2], random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Keeps `depth` reads in flight, until everything is discarded or else for [`SHORTEST`].
    fn run(&mut self, depth: u16, trim_queue: Option<usize>, shortest: Duration) -> Result<Run> {
        let mut reads = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let mut trimmed = 0;
        let mut in_flight = depth;
        (0..u64::from(depth)).try_for_each(|slot| self.read(slot))?;
        if let Some(queue) = trim_queue {
            self.discard(queue, trimmed)?;
            in_flight += 1;
        }
        let mut took = None;
        while in_flight > 0 {
            for slot in self.wait()? {
                if slot == DISCARDING {
                    trimmed += DISCARD_BYTES;
                    match trim_queue.filter(|_| trimmed < TRIMMED_BYTES) {
                        Some(queue) => self.discard(queue, trimmed)?,
                        None => (took, in_flight) = (Some(start.elapsed()), in_flight - 1),
                    }
                    continue;
                }
                reads.push(self.since.get(usize::try_from(slot)?).context("a slot")?.elapsed());
                if trim_queue.is_none() && start.elapsed() > shortest {
                    took.get_or_insert(start.elapsed());
                }
                if took.is_none() { self.read(slot)? } else { in_flight -= 1 }
            }
        }
        Ok(Run::of(reads, took.context("it took a time")?))
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

    /// Discards what is next of what is to be discarded.
    fn discard(&mut self, queue: usize, trimmed: u64) -> Result<()> {
        let (at, data) = (READ_BYTES + trimmed, SLOTS + DISCARDING * SLOT_BYTES + DATA);
        let bytes = DISCARD_BYTES.min(TRIMMED_BYTES - trimmed);
        self.monitor.memory.write_obj(at / 512, GuestAddress(data))?;
        self.monitor.memory.write_obj(bytes / 512, GuestAddress(data + 8))?;
        self.offer(queue, DISCARDING, kind::DISCARD, 0, Descriptor::readable(data, 16))
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

    /// Sleeps until requests were used; their slots.
    fn wait(&mut self) -> Result<Vec<u64>> {
        loop {
            let used = self.take_used()?;
            if !used.is_empty() {
                return Ok(used);
            }
            let mut polled: Vec<_> =
                self.calls.iter().map(|call| PollFd::new(call, PollFlags::IN)).collect();
            let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
            ensure!(poll(&mut polled, Some(&patience))? > 0, "nothing was used in {PATIENCE:?}");
            for mut call in &self.calls {
                // Only one of them may have been signalled.
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
                ensure!(status == 0, "a request ended with status {status}");
                used.push(slot);
            }
        }
        Ok(used)
    }
}
