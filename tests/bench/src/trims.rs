//! `bench trims`: latency of reads while another range of the disk is discarded, compared with
//! reads alone.
//!
//! `bulkhead serve` with cache mode `none`, under a vhost-user front-end in this process. The
//! images are fragmented, so that freeing them is costly.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::discard_load::{DiscardLoad, Discards, Latencies, Transfers};
use super::host::{self, InMemory, LoopDevice};
use super::report::median;
use driver::feature;
use driver::vhost_user::Monitor;
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
/// Minimum duration of a run without discards.
const MIN_DURATION: Duration = Duration::from_millis(300);
const DEPTHS: [u16; 3] = [1, 8, 32];

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
        let disk = Disk::make(&folder, store, READ_BYTES + DISCARDED_BYTES, READ_BYTES)?;
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
pub(super) struct Disk {
    pub(super) image: PathBuf,
    served: ServeProcess,
    _mounted: Option<InMemory>,
}

impl Disk {
    /// Makes one of the given kind, of `bytes`, of which the first `allocated` are allocated.
    pub(super) fn make(folder: &Path, store: &str, bytes: u64, allocated: u64) -> Result<Self> {
        let mounted = match store {
            "disk" => None,
            "xfs" => Some(InMemory::mount(folder, "xfs")?),
            _ => Some(InMemory::mount(folder, "ext4")?),
        };
        let image = mounted.as_ref().map_or(folder, InMemory::folder).join("trims.img");
        File::create(&image)?.set_len(bytes)?;
        fill(&image, 0, allocated)?;
        let device =
            (store == "loop").then(|| LoopDevice::over(&image, &["--direct-io=on"])).transpose()?;
        let path = device.as_ref().map_or(image.as_path(), LoopDevice::path);
        let served = ServeProcess::start_at(path, "cache = \"none\"\nqueues = 2");
        // Only the program keeps the device open now, even if this process is killed.
        drop(device);
        Ok(Self { image, served, _mounted: mounted })
    }

    /// Connects a front-end with two queues.
    pub(super) fn connect(&self) -> Result<DiscardLoad> {
        let socket = self.served.socket();
        DiscardLoad::new(Monitor::start(&socket, 2, feature::INDIRECT_DESC, false))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.image);
    }
}

/// Allocates a range of a file in extents that are not contiguous.
pub(super) fn fill(image: &Path, start: u64, bytes: u64) -> Result<()> {
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
        let mut load = disk.connect()?;
        let mut run = |depth, trim: bool, min_duration: Duration| {
            let reads = Transfers { depth, bytes: READ_BYTES, write_interval: 0 };
            let discards = Discards {
                queue: trim_queue,
                start: READ_BYTES,
                bytes: DISCARD_BYTES,
                stride: DISCARD_BYTES,
                count: DISCARDED_BYTES / DISCARD_BYTES,
            };
            if trim {
                fill(&disk.image, READ_BYTES, DISCARDED_BYTES)?;
            }
            let before = allocated(&disk.image)?;
            let run = load.run(reads, trim.then_some(discards), min_duration)?;
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
pub(super) fn allocated(image: &Path) -> Result<u64> {
    Ok(fs::metadata(image)?.blocks() * 512)
}
