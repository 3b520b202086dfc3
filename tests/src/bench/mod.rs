//! `make bench` and `make bench-gate`: what the storage stack costs, beside fio and QEMU's storage daemon.
//!
//! The stack is the production one from the transport to the host's file; only the guest is played in process, by
//! [`driver`](self::driver), so that no exits are in the figures. docs/performance.md says what is measured and why so.

mod driver;
mod fio;
mod gate;
mod host;
mod ours;
mod qsd;
mod report;
mod trims;
mod wake;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use self::driver::Run;
use self::fio::Settings;
use self::host::Disks;
use self::report::Report;
use self::workload::{Place, Workload};

pub use self::gate::{gate, play};
pub use self::trims::trims;

/// How long each run takes.
const RUN: Duration = Duration::from_millis(700);
/// What comes before it, uncounted.
const WARM_UP: Duration = Duration::from_millis(20);

/// What one run found.
#[derive(Clone, Copy, Debug)]
struct Figures {
    iops: f64,
    /// CPU time of the backend alone per request; of fio, which has no driver, all of it.
    cpu_ns: f64,
    /// At most this many system calls per request, by the device's own statistics.
    system_calls: Option<f64>,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn of(run: Run, cpu: Duration) -> Self {
        let requests = run.requests.max(1) as f64;
        Self {
            iops: requests / run.elapsed.as_secs_f64(),
            cpu_ns: cpu.as_nanos() as f64 / requests,
            system_calls: None,
        }
    }
}

/// What is measured against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Contestant {
    Ours,
    Fio,
    FioPlain,
    FioFixed,
    Qsd,
}

impl Contestant {
    const ALL: [Self; 5] = [Self::Ours, Self::Fio, Self::FioPlain, Self::FioFixed, Self::Qsd];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Fio => "fio",
            Self::FioPlain => "fio_plain",
            Self::FioFixed => "fio_fixed",
            Self::Qsd => "qsd",
        }
    }

    fn run(self, path: &Path, workload: &Workload) -> Result<Figures> {
        match self {
            Self::Ours => ours::run(path, workload, RUN),
            Self::Fio => fio::run(path, workload, Settings::Best, RUN),
            Self::FioPlain => fio::run(path, workload, Settings::Plain, RUN),
            Self::FioFixed => fio::run(path, workload, Settings::Fixed, RUN),
            Self::Qsd => qsd::run(path, workload, RUN),
        }
    }
}

/// Which part of the benchmark to run.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Only workloads with this in their names.
    pub workload: Option<String>,
    /// Only contestants with these names.
    pub contestants: Vec<String>,
}

/// Prints the CPU time of a worker whose driver comes back slowly, at queue depth 1: what polling costs where it is of no use.
///
/// # Errors
///
/// As [`bench`].
pub fn pauses() -> Result<()> {
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

/// Where the disks and the results go.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

/// Measures, shows the table and writes `target/bench/storage.json`.
///
/// # Errors
///
/// When something is missing or a contestant fails.
pub fn bench(selection: &Selection) -> Result<()> {
    host::take_precedence();
    let disks = Disks::make(&folder())?;
    let mut report = Report::new(host::describe(&disks.on_disk())?);
    host::pin_to_one_cpu()?;
    report.show_wake(wake::measure()?);
    let wanted = |name: &str| selection.workload.as_ref().is_none_or(|part| name.contains(part));
    let contests = |contestant: &Contestant| {
        let names = &selection.contestants;
        names.is_empty() || names.iter().any(|name| name == contestant.name())
    };
    for workload in workload::ALL.iter().filter(|workload| wanted(workload.name)) {
        let path = match workload.place {
            Place::Disk => disks.on_disk(),
            Place::XfsOnMemory => disks.on_xfs(),
        };
        for _ in 0..selection.rounds {
            for contestant in Contestant::ALL.into_iter().filter(contests) {
                let figures = contestant
                    .run(&path, workload)
                    .with_context(|| format!("{}, {}", workload.name, contestant.name()))?;
                report.add(workload.name, contestant, figures);
                // Each starts with nothing left to write back.
                std::fs::File::open(&path)?.sync_all()?;
            }
        }
        report.show_workload(workload.name);
    }
    report.write(&folder().join("storage.json"))
}
