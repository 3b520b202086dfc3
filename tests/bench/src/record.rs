//! `bench record`: cost of a recording, compared in alternating pairs with the same disk without
//! one.
//!
//! Threads have all CPUs. The log is in a folder of another store than the disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use block::{Backend, CacheMode, DiskOptions, RawFile, RecordOptions, RecordedDisk, Recording};

use super::contestant::RUN;
use super::figures::Figures;
use super::host::{self, Disks, folder};
use super::ours;
use super::report::median;
use super::workload::{self, Direction, Workload};

/// Prints a table by workload; each figure is the median of `pairs` alternating pairs.
///
/// # Errors
///
/// If a system call or a request fails, or a recording stops.
pub(crate) fn record(pairs: usize, logs: &Path) -> Result<()> {
    host::raise_priority();
    let disks = Disks::make(&folder())?;
    println!("{}; medians of {pairs} pairs\n", host::describe(&disks.on_xfs())?);
    println!(
        "{:<26}{:>10}{:>10}{:>8}{:>10}{:>10}",
        "cache, workload", "IOPS", "recorded", "ratio", "CPU ns", "recorded"
    );
    for workload in workload::ALL.iter().filter(|one| one.direction == Direction::Write) {
        for cache in [CacheMode::WriteBack, CacheMode::None] {
            let mut runs = Vec::new();
            for _ in 0..pairs {
                let plain = run(&disks, workload, cache, None)?;
                runs.push((plain, run(&disks, workload, cache, Some(logs))?));
            }
            let of = |figure: fn(&(Figures, Figures)) -> f64| median(runs.iter().map(figure));
            println!(
                "{:<26}{:>10.0}{:>10.0}{:>8.2}{:>10.0}{:>10.0}",
                format!("{cache} {}", workload.name),
                of(|(plain, _)| plain.iops),
                of(|(_, recorded)| recorded.iops),
                of(|(plain, recorded)| recorded.iops / plain.iops),
                of(|(plain, _)| plain.cpu_ns),
                of(|(_, recorded)| recorded.cpu_ns),
            );
        }
    }
    Ok(())
}

/// A run with a log in the folder `logs`, if there is one.
fn run(
    disks: &Disks,
    workload: &Workload,
    cache: CacheMode,
    logs: Option<&Path>,
) -> Result<Figures> {
    let disk: Arc<dyn Backend> =
        Arc::new(RawFile::open(&disks.on_xfs(), &DiskOptions::new(cache))?);
    let Some(logs) = logs else {
        return ours::run_backend(disk, workload, RUN, Duration::ZERO);
    };
    let log = logs.join(format!("bench-{}.log", std::process::id()));
    let recording = Recording::start("bench", &*disk, &RecordOptions::new(&log))?;
    let disk = Arc::new(RecordedDisk::new(disk, Arc::clone(&recording)));
    let figures = ours::run_backend(disk, workload, RUN, Duration::ZERO);
    let end = recording.status().end;
    drop(recording);
    std::fs::remove_file(&log)?;
    anyhow::ensure!(end.is_none(), "the recording stopped: {end:?}");
    figures
}
