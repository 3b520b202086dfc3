//! `bench small-trims`: many small discards beside reads and writes, as `fstrim` of a fragmented
//! ext4 sends them: each after the completion of the one before.
//!
//! Runs alternate: the trim alone, the transfers alone, both. The images are those of
//! [`trims`](super::trims).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::discard_load::{Discards, Latencies, Transfers};
use super::host::{self, InMemory};
use super::report::median;
use super::trims::{Disk, allocated, fill};

const MIB: u64 = 1 << 20;
/// Range of the transfers, at the start of the disk.
const TRANSFER_BYTES: u64 = 256 * MIB;
/// One in this many transfers is a write.
const WRITE_INTERVAL: u64 = 4;
const DEPTHS: [u16; 3] = [1, 4, 16];
/// Discards of a trim, and the distance of their starts: every second block of a file system.
const DISCARDS: u64 = 2000;
const DISCARD_BYTES: u64 = 4096;
const STRIDE: u64 = 2 * DISCARD_BYTES;
/// Minimum duration of a run without discards.
const MIN_DURATION: Duration = Duration::from_millis(300);

/// Prints a table by store and queue depth; each figure is the median of `pairs` alternating runs.
///
/// # Errors
///
/// If a system call or a request fails.
pub(crate) fn small_trims(pairs: usize, only: Option<&str>) -> Result<()> {
    let folder = host::folder();
    InMemory::unmount_leftovers(&folder)?;
    host::raise_priority();
    println!("{}; medians of {pairs} runs of each kind\n", host::describe(&folder)?);
    println!(
        "{:<8}{:>4}{:>14}{:>14}{:>8}{:>14}{:>14}{:>8}",
        "store", "QD", "trim ms, idle", "busy", "ratio", "read p99 us", "with trim", "ratio"
    );
    for store in
        ["xfs", "ext4", "loop", "disk"].into_iter().filter(|s| only.is_none_or(|only| only == *s))
    {
        let bytes = TRANSFER_BYTES + DISCARDS * STRIDE;
        let disk = Disk::make(&folder, store, bytes, TRANSFER_BYTES)?;
        for depth in DEPTHS {
            let runs = (0..pairs).map(|_| Runs::measure(&disk, depth));
            show(store, depth, &runs.collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(())
}

fn show(store: &str, depth: u16, runs: &[Runs]) {
    let of = |figure: fn(&Runs) -> f64| median(runs.iter().map(figure));
    println!(
        "{store:<8}{depth:>4}{:>14.0}{:>14.0}{:>8.2}{:>14.0}{:>14.0}{:>8.2}",
        of(|runs| runs.idle.ms()),
        of(|runs| runs.busy.ms()),
        of(|runs| runs.busy.ms() / runs.idle.ms()),
        of(|runs| runs.without.p99_us),
        of(|runs| runs.busy.p99_us),
        of(|runs| runs.busy.p99_us / runs.without.p99_us),
    );
}

/// A trim of an idle disk, one of a busy disk, and the load without a trim.
struct Runs {
    idle: Latencies,
    busy: Latencies,
    without: Latencies,
}

impl Runs {
    fn measure(disk: &Disk, depth: u16) -> Result<Self> {
        let mut load = disk.connect()?;
        let mut run = |depth, trim: bool, min_duration: Duration| {
            let transfers =
                Transfers { depth, bytes: TRANSFER_BYTES, write_interval: WRITE_INTERVAL };
            let discards = Discards {
                queue: 1,
                start: TRANSFER_BYTES,
                bytes: DISCARD_BYTES,
                stride: STRIDE,
                count: DISCARDS,
            };
            if trim {
                fill(&disk.image, TRANSFER_BYTES, DISCARDS * STRIDE)?;
            }
            let before = allocated(&disk.image)?;
            let run = load.run(transfers, trim.then_some(discards), min_duration)?;
            let freed = before.saturating_sub(allocated(&disk.image)?);
            // The host's extents take space, too.
            let expected = if trim { DISCARDS * DISCARD_BYTES * 9 / 10 } else { 0 };
            ensure!(freed >= expected, "only {freed} bytes are freed");
            Ok(run)
        };
        let idle = run(0, true, Duration::ZERO)?;
        let busy = run(depth, true, Duration::ZERO)?;
        let without = run(depth, false, busy.duration.clamp(MIN_DURATION, 4 * MIN_DURATION))?;
        Ok(Self { idle, busy, without })
    }
}
