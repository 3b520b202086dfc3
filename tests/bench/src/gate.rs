//! `make bench-gate`: instructions and system calls per request, which are reproducible, unlike
//! times.
//!
//! Both are counted over the same run. One thread alternates between driver and worker in the order
//! of two threads on one CPU: a wait that returns at the kick, a round that accepts requests, a
//! wait that submits them and returns with the page-cached reads complete, a round that completes
//! them and interrupts. No race can change a count. The difference of a long and a short run
//! excludes startup. The driver is excluded, too: callgrind counts only below [`serve_queue`], and
//! the driver's only system calls are kicks, whose number is known.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use block::{
    Backend, CacheMode, DiskOptions, LayeredDisk, RawFile, RecordOptions, RecordedDisk, Recording,
    create_layer,
};
use devices::storage::{Protocol, QueueWorker};
use devices::virtio::{ActiveQueue, Block, DeviceStatus, FaultReporter, Interrupt, Queue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{self, folder};
use super::load::{self, Events, LoadDriver};
use super::ours;
use super::workload::{Direction, Order, RANDOM_READS, Workload};

/// Limit of user instructions per 4 KiB read at queue depth 32.
const MAX_INSTRUCTIONS: f64 = 570.0;
/// Limit of user instructions that a layer adds to a read of blocks that one file answers for.
const MAX_LAYER_INSTRUCTIONS: f64 = 65.0;
/// Limit of system calls per 4 KiB read at queue depth 32.
const MAX_SYSTEM_CALLS: f64 = 0.15;

/// Writes, each to another block.
const SCATTERED_WRITES: Workload =
    Workload { direction: Direction::Write, order: Order::Scattered, ..RANDOM_READS };

/// Suffixes of a raw disk, and of a layer over the one of the same name.
const IMAGE: &str = "img";
const LAYER: &str = "layer";

/// Lengths of the two runs in batches of [`RANDOM_READS`]' depth.
const BATCHES: (u64, u64) = (100, 1100);

/// Counts, prints the figures and fails if one exceeds its limit.
///
/// # Errors
///
/// If a figure exceeds its limit, or a tool is missing or fails.
pub(crate) fn gate() -> Result<()> {
    std::fs::create_dir_all(folder())?;
    let disk = folder().join("gate").with_extension(IMAGE);
    host::fill(&disk, 64 << 20)?;
    let instructions = per_request(|batches| instructions(&disk, batches));
    let system_calls = per_request(|batches| system_calls(&disk, batches));
    let layers = layer_instructions(&disk);
    std::fs::remove_file(&disk)?;
    let (instructions, system_calls) = (instructions?, system_calls?);
    let [own, inherited] = layers?.map(|layer| layer - instructions);
    println!("per 4 KiB read at queue depth {}:", RANDOM_READS.depth);
    println!("{instructions:8.1} user instructions  (at most {MAX_INSTRUCTIONS})");
    println!("{system_calls:8.3} system calls       (at most {MAX_SYSTEM_CALLS})");
    println!("more with a layer:");
    println!("{own:8.1} if it has the blocks  (at most {MAX_LAYER_INSTRUCTIONS})");
    println!("{inherited:8.1} if its base has them  (at most {MAX_LAYER_INSTRUCTIONS})");
    ensure!(own.max(inherited) <= MAX_LAYER_INSTRUCTIONS, "too many instructions of a layer");
    ensure!(instructions <= MAX_INSTRUCTIONS, "too many instructions");
    ensure!(system_calls <= MAX_SYSTEM_CALLS, "too many system calls");
    Ok(())
}

/// Instructions per request over a layer that has all blocks, and over one that has none.
fn layer_instructions(base: &Path) -> Result<[f64; 2]> {
    let mut counts = [0.0; 2];
    for (count, map) in counts.iter_mut().zip([0xff, 0]) {
        let layer = base.with_extension(LAYER);
        let size = create_layer(&layer, base, None)?.size;
        // docs/layer-format.md: the map has a bit for each block of 4 KiB.
        let bits = vec![map; usize::try_from(size / 4096 / 8)?];
        File::options().write(true).open(&layer)?.write_all_at(&bits, 8192)?;
        let counted = per_request(|batches| instructions(&layer, batches));
        std::fs::remove_file(&layer)?;
        *count = counted?;
    }
    Ok(counts)
}

/// Difference of the counts of both runs per request.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_request(count: impl Fn(u64) -> Result<u64>) -> Result<f64> {
    let (short, long) = BATCHES;
    let requests = (long - short) * u64::from(RANDOM_READS.depth);
    let difference =
        count(long)?.checked_sub(count(short)?).context("the longer run has a smaller count")?;
    Ok(difference as f64 / requests as f64)
}

/// User instructions below [`serve_queue`].
fn instructions(disk: &Path, batches: u64) -> Result<u64> {
    let out = folder().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*serve_queue*"])
        .arg(format!("--callgrind-out-file={}", out.display()));
    play_under(&mut command, disk, batches)?;
    let profile = std::fs::read_to_string(out)?;
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.context("callgrind's profile has no totals")?.trim().parse()?)
}

/// System calls of the worker.
fn system_calls(disk: &Path, batches: u64) -> Result<u64> {
    let out = folder().join("strace.out");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&out);
    let kicks = play_under(&mut command, disk, batches)?;
    let summary = std::fs::read_to_string(out)?;
    let total = summary.lines().find_map(|line| line.trim().strip_suffix("total"));
    let calls: u64 = total.context("strace's summary has no total")?.trim().parse()?;
    calls.checked_sub(kicks).context("fewer system calls than kicks")
}

/// Runs [`play`] under a tool and returns the number of kicks.
fn play_under(tool: &mut Command, disk: &Path, batches: u64) -> Result<u64> {
    tool.arg(std::env::current_exe()?).arg("play").arg(disk).arg(batches.to_string());
    Ok(host::call(tool)?.trim().parse()?)
}

/// Alternates driver and worker for `batches` batches of reads of the file `disk`, and prints the
/// number of kicks. With `record` the disk is recorded in that log.
///
/// # Errors
///
/// If a system call or a read fails.
pub(crate) fn play(disk: &Path, batches: u64, writes: bool, record: Option<&Path>) -> Result<()> {
    let memory = load::guest_memory()?;
    let workload = if writes { SCATTERED_WRITES } else { RANDOM_READS };
    let options = DiskOptions { read_only: !writes, ..DiskOptions::new(CacheMode::WriteBack) };
    let mut backend: Arc<dyn Backend> = if disk.extension() == Some(LAYER.as_ref()) {
        Arc::new(LayeredDisk::open(disk, &disk.with_extension(IMAGE), &options)?)
    } else {
        Arc::new(RawFile::open(disk, &options)?)
    };
    if let Some(log) = record {
        let recording = Recording::start("gate", &*backend, &RecordOptions::new(log))?;
        backend = Arc::new(RecordedDisk::new(backend, recording));
    }
    let capacity = backend.geometry().capacity;
    let block = Block::new("gate", "", 1, backend);
    block.negotiated(ours::FEATURES);

    let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let line = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let events = Events { kick: ours::own(&kick)?, interrupt: ours::own(&line)? };
    let mut driver = LoadDriver::new(&memory, events, &workload, capacity)?;
    let queue = Queue::new(&memory, load::LAYOUT, ours::FEATURES)?;
    let interrupt = Interrupt::fixed(line);
    let faults = FaultReporter::new(DeviceStatus::default(), interrupt.clone());
    let active = ActiveQueue::new(0, queue, kick, interrupt);
    let mut worker = block.worker(active, faults)?;

    ensure!(worker.round(), "the ring is empty before the driver starts");
    driver.offer_all()?;
    let mut left = batches * u64::from(workload.depth);
    while left > 0 {
        driver.arm_interrupt()?;
        serve_queue(&mut worker)?;
        left = left.saturating_sub(driver.reap_and_resubmit()?);
    }
    println!("{}", driver.kicks);
    Ok(())
}

/// The worker's part, from one sleep to the next. callgrind counts below this function, by its
/// name.
#[inline(never)]
fn serve_queue<P: Protocol>(worker: &mut QueueWorker<P>) -> Result<()> {
    for _ in 0..2 {
        worker.wait()?;
        ensure!(worker.round(), "the worker has nothing left to do");
    }
    Ok(())
}
