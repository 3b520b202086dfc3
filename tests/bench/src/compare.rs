//! `bench compare` and `bench pauses`: interleaved runs of all contestants, and the cost of
//! polling.

use std::time::Duration;

use anyhow::{Context, Result};

use super::contestant::{Contestant, RUN};
use super::figures::Figures;
use super::host::{self, Disks, folder};
use super::report::Report;
use super::workload::{self, Store, Workload};
use super::{ours, wake};

/// Selection of workloads and contestants.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Interleaved rounds.
    pub(crate) rounds: usize,
    /// Only workloads whose names contain this.
    pub(crate) workload: Option<String>,
    /// Only contestants with these names.
    pub(crate) contestants: Vec<String>,
}

/// Prints the CPU time of a worker whose driver pauses between requests at queue depth 1, where
/// polling gains nothing.
///
/// # Errors
///
/// As [`bench`].
pub(crate) fn pauses() -> Result<()> {
    std::fs::create_dir_all(folder())?;
    let disk = folder().join("pauses.img");
    host::fill(&disk, 64 << 20)?;
    host::pin_to_one_cpu()?;
    let one = Workload { depth: 1, ..workload::RANDOM_READS };
    for pause_us in [1_000_000, 1000, 100, 40, 0] {
        let pause = Duration::from_micros(pause_us);
        let run = ours::run_paced(&disk, &one, RUN.max(3 * pause), pause)?;
        let share = run.cpu_ns * run.iops / 1e9 * 100.0;
        let Figures { iops, cpu_ns, system_calls } = run;
        let calls = system_calls.unwrap_or_default();
        println!(
            "{pause_us:>8} us: {iops:>8.0} IOPS, {cpu_ns:>6.0} ns of CPU per request, {share:>5.1} % of one, {calls:.1} calls"
        );
    }
    Ok(std::fs::remove_file(&disk)?)
}

/// Measures, prints the table and writes `target/bench/storage.json`.
///
/// # Errors
///
/// If a tool is missing or a contestant fails.
pub(crate) fn bench(selection: &Selection) -> Result<()> {
    host::raise_priority();
    let disks = Disks::make(&folder())?;
    let mut report = Report::new(host::describe(&disks.on_disk())?);
    host::pin_to_one_cpu()?;
    report.show_wake(wake::measure()?);
    let wanted = |name: &str| selection.workload.as_ref().is_none_or(|part| name.contains(part));
    let is_selected = |contestant: &Contestant| {
        let names = &selection.contestants;
        names.is_empty() || names.iter().any(|name| name == contestant.name())
    };
    for workload in workload::ALL.iter().filter(|workload| wanted(workload.name)) {
        let path = match workload.store {
            Store::Disk => disks.on_disk(),
            Store::XfsOnMemory => disks.on_xfs(),
        };
        for _ in 0..selection.rounds {
            for contestant in Contestant::ALL.into_iter().filter(is_selected) {
                let figures = contestant
                    .run(&path, workload)
                    .with_context(|| format!("{}, {}", workload.name, contestant.name()))?;
                report.add(workload.name, contestant, figures);
                // Each run starts without dirty pages.
                std::fs::File::open(&path)?.sync_all()?;
            }
        }
        report.show_workload(workload.name);
    }
    report.write(&folder().join("storage.json"))
}
