//! `bench copies`: cost of stable copies, compared in alternating pairs with direct I/O without
//! them.
//!
//! The store is XFS on a loop device over tmpfs: with a slower one the copy costs a smaller share.

use anyhow::Result;
use block::{CacheMode, DiskOptions, StableCopyMode};

use super::contestant::RUN;
use super::figures::Figures;
use super::host::{self, Disks, folder};
use super::ours;
use super::report::median;
use super::workload::{self, Cpus, Direction, Workload};

/// Prints a table by workload; each figure is the median of `pairs` alternating pairs.
///
/// # Errors
///
/// If a system call or a request fails.
pub(crate) fn copies(pairs: usize) -> Result<()> {
    host::raise_priority();
    let disks = Disks::make(&folder())?;
    println!("{}; medians of {pairs} pairs\n", host::describe(&disks.on_xfs())?);
    host::pin_to_one_cpu()?;
    println!(
        "{:<20}{:>12}{:>12}{:>8}{:>12}{:>12}",
        "cache = \"none\"", "IOPS", "copied", "ratio", "CPU ns", "copied"
    );
    for workload in workload::ALL.iter().filter(|one| one.cpus == Cpus::One && one.depth > 1) {
        let mut runs = Vec::new();
        for _ in 0..pairs {
            let direct = run(&disks, workload, StableCopyMode::Off)?;
            runs.push((direct, run(&disks, workload, StableCopyMode::On)?));
        }
        let of = |figure: fn(&(Figures, Figures)) -> f64| median(runs.iter().map(figure));
        println!(
            "{:<20}{:>12.0}{:>12.0}{:>8.2}{:>12.0}{:>12.0}",
            workload.name,
            of(|(direct, _)| direct.iops),
            of(|(_, copied)| copied.iops),
            of(|(direct, copied)| copied.iops / direct.iops),
            of(|(direct, _)| direct.cpu_ns),
            of(|(_, copied)| copied.cpu_ns),
        );
    }
    Ok(())
}

fn run(disks: &Disks, workload: &Workload, stable_copies: StableCopyMode) -> Result<Figures> {
    let read_only = workload.direction == Direction::Read;
    let defaults = DiskOptions::new(CacheMode::None);
    let options = DiskOptions { read_only, stable_copies, ..defaults };
    ours::run_with(&disks.on_xfs(), &options, workload, RUN)
}
