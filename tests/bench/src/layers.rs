//! `bench layers`: a layer over a raw image, and qcow2 over it under QEMU's storage daemon,
//! compared with the raw image in alternating runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use block::{CacheMode, DiskOptions, LayeredDisk, RawFile, create_layer, layer_info};

use super::contestant::RUN;
use super::figures::Figures;
use super::host::{self, Disks, folder};
use super::ours;
use super::qsd::{self, Format};
use super::report::median;
use super::workload::{Cpus, Direction, Order, Store, Workload};

/// Most runs that fill a layer.
const FILLS: usize = 10;

/// Time in which no block is written twice.
const SHORT: Duration = Duration::from_millis(150);

/// A comparison.
struct Case {
    name: &'static str,
    direction: Direction,
    order: Order,
    /// The top has all blocks before the run.
    is_filled: bool,
    /// The raw image has no blocks before the run.
    is_sparse: bool,
}

const CASES: [Case; 7] = [
    Case {
        name: "reads of own blocks",
        direction: Direction::Read,
        order: Order::Random,
        is_filled: true,
        is_sparse: false,
    },
    Case {
        name: "reads of the base",
        direction: Direction::Read,
        order: Order::Random,
        is_filled: false,
        is_sparse: false,
    },
    Case {
        name: "writes of own blocks",
        direction: Direction::Write,
        order: Order::Random,
        is_filled: true,
        is_sparse: false,
    },
    Case {
        name: "first writes",
        direction: Direction::Write,
        order: Order::Sequential,
        is_filled: false,
        is_sparse: false,
    },
    Case {
        name: "  beside a sparse image",
        direction: Direction::Write,
        order: Order::Sequential,
        is_filled: false,
        is_sparse: true,
    },
    Case {
        name: "scattered first writes",
        direction: Direction::Write,
        order: Order::Scattered,
        is_filled: false,
        is_sparse: false,
    },
    Case {
        name: "  beside a sparse image",
        direction: Direction::Write,
        order: Order::Scattered,
        is_filled: false,
        is_sparse: true,
    },
];

impl Case {
    fn workload(&self) -> Workload {
        Workload {
            name: self.name,
            direction: self.direction,
            order: self.order,
            store: Store::XfsOnMemory,
            block_bytes: 4 << 10,
            depth: 32,
            cpus: Cpus::One,
        }
    }

    fn duration(&self) -> Duration {
        if self.order == Order::Random { RUN } else { SHORT }
    }
}

/// The figures of one round.
struct RoundFigures {
    raw: Figures,
    layer: Figures,
    qcow2: Figures,
}

/// Prints a table of 4 KiB requests at queue depth 32; each figure is the median of `pairs`
/// alternating runs.
///
/// # Errors
///
/// If a system call, a request or a tool fails.
pub(crate) fn layers(pairs: usize, only: &str) -> Result<()> {
    host::raise_priority();
    let disks = Disks::make(&folder())?;
    let base = disks.on_xfs();
    println!("{}; medians of {pairs} rounds\n", host::describe(&base)?);
    host::pin_to_one_cpu()?;
    println!(
        "{:<22}{:>10}{:>10}{:>8}{:>10}{:>8}{:>10}{:>10}",
        "4 KiB, depth 32", "raw IOPS", "layer", "ratio", "qcow2", "ratio", "raw CPU", "layer CPU"
    );
    // The raw image that is written is another one: a base never changes.
    let raw = base.with_file_name("raw.img");
    host::fill(&raw, usize::try_from(std::fs::metadata(&base)?.len())?)?;
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        let mut rounds = Vec::new();
        for _ in 0..pairs {
            rounds.push(RoundFigures {
                raw: run_raw(&raw, case)?,
                layer: run_layer(&base, case)?,
                qcow2: run_qcow2(&base, case)?,
            });
        }
        let of = |figure: fn(&RoundFigures) -> f64| median(rounds.iter().map(figure));
        println!(
            "{:<22}{:>10.0}{:>10.0}{:>8.2}{:>10.0}{:>8.2}{:>10.0}{:>10.0}",
            case.name,
            of(|round| round.raw.iops),
            of(|round| round.layer.iops),
            of(|round| round.layer.iops / round.raw.iops),
            of(|round| round.qcow2.iops),
            of(|round| round.qcow2.iops / round.raw.iops),
            of(|round| round.raw.cpu_ns),
            of(|round| round.layer.cpu_ns),
        );
    }
    Ok(())
}

fn options(case: &Case) -> DiskOptions {
    let read_only = case.direction == Direction::Read;
    DiskOptions { read_only, ..DiskOptions::new(CacheMode::WriteBack) }
}

fn run_raw(image: &Path, case: &Case) -> Result<Figures> {
    if case.is_sparse {
        let sparse = TempImage(image.with_file_name("sparse.img"));
        File::create(&sparse.0)?.set_len(std::fs::metadata(image)?.len())?;
        return ours::run_with(&sparse.0, &options(case), &case.workload(), case.duration());
    }
    ours::run_with(image, &options(case), &case.workload(), case.duration())
}

fn run_layer(base: &Path, case: &Case) -> Result<Figures> {
    let layer = TempImage(base.with_file_name("top.layer"));
    let size = create_layer(&layer.0, base, None)?.size;
    let open = |options: DiskOptions| LayeredDisk::open(&layer.0, base, &options);
    if case.is_filled {
        let disk = Arc::new(open(DiskOptions::new(CacheMode::WriteBack))?);
        let mut answered = None;
        // A busy machine needs several.
        for _ in 0..FILLS {
            ours::run_backend(Arc::clone(&disk) as _, &FILL, RUN, Duration::ZERO)?;
            answered = layer_info(&layer.0)?.first().map(|top| top.answered);
            if answered == Some(size) {
                break;
            }
        }
        ensure!(answered == Some(size), "the layer has {answered:?} bytes of {size}");
    }
    let disk = Arc::new(open(options(case))?);
    ours::run_backend(disk, &case.workload(), case.duration(), Duration::ZERO)
}

fn run_qcow2(base: &Path, case: &Case) -> Result<Figures> {
    let top = TempImage(base.with_file_name("top.qcow2"));
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(&top.0);
    host::call(&mut create)?;
    let capacity = RawFile::open(base, &DiskOptions::new(CacheMode::WriteBack).read_only())
        .map(|disk| block::Backend::geometry(&disk).capacity)?;
    let run = |workload: &Workload, duration| {
        qsd::run_format(&top.0, Format::Qcow2, capacity, workload, duration)
    };
    if case.is_filled {
        run(&FILL, 3 * RUN)?;
    }
    run(&case.workload(), case.duration())
}

/// Writes every block at least once.
const FILL: Workload = Workload {
    name: "fill",
    direction: Direction::Write,
    order: Order::Sequential,
    store: Store::XfsOnMemory,
    block_bytes: 256 << 10,
    depth: 8,
    cpus: Cpus::One,
};

/// A file that is removed with this.
struct TempImage(PathBuf);

impl Drop for TempImage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
