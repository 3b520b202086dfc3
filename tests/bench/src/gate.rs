//! `make bench-gate`: instructions and system calls per request, which unlike times repeat from run
//! to run.
//!
//! Both are counted over the same play: one thread is driver and worker in turn, in the steps both
//! take when they share a CPU (a wait that finds the driver back before it sleeps, a round that
//! accepts, a wait that submits and finds the page-cached reads done, a round that settles and
//! interrupts). So there is no race whose outcome would change a count. Counting two plays of
//! different length and taking the difference leaves out all that happens once. What the driver
//! does is left out too: its instructions because only those below [`serve_queue`] are counted, its
//! system calls because it makes none but kicks, whose number is known.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use block::{Backend, CacheMode, DiskOptions, RawFile};
use devices::storage::{Protocol, QueueWorker};
use devices::virtio::{ActiveQueue, Block, DeviceStatus, FaultReporter, Interrupt, Queue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{self, folder};
use super::load::{self, Driver, Events};
use super::ours;
use super::workload::RANDOM_READS;

/// The most user instructions per 4 KiB read at queue depth 32.
const MOST_INSTRUCTIONS: f64 = 570.0;
/// The most system calls.
const MOST_SYSTEM_CALLS: f64 = 0.15;

/// The lengths of the two plays, in batches of [`RANDOM_READS`]' depth.
const BATCHES: (u64, u64) = (100, 1100);

/// Counts, shows the figures and fails if one is above its limit.
///
/// # Errors
///
/// If one is, or a tool is missing or fails.
pub(crate) fn gate() -> Result<()> {
    std::fs::create_dir_all(folder())?;
    let disk = folder().join("gate.img");
    host::fill(&disk, 64 << 20)?;
    let instructions = per_request(|batches| instructions(&disk, batches));
    let system_calls = per_request(|batches| system_calls(&disk, batches));
    std::fs::remove_file(&disk)?;
    let (instructions, system_calls) = (instructions?, system_calls?);
    println!("per 4 KiB read at queue depth {}:", RANDOM_READS.depth);
    println!("{instructions:8.1} user instructions  (at most {MOST_INSTRUCTIONS})");
    println!("{system_calls:8.3} system calls       (at most {MOST_SYSTEM_CALLS})");
    ensure!(instructions <= MOST_INSTRUCTIONS, "too many instructions");
    ensure!(system_calls <= MOST_SYSTEM_CALLS, "too many system calls");
    Ok(())
}

/// The difference of two counts, by request.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_request(count: impl Fn(u64) -> Result<u64>) -> Result<f64> {
    let (short, long) = BATCHES;
    let requests = (long - short) * u64::from(RANDOM_READS.depth);
    let difference =
        count(long)?.checked_sub(count(short)?).context("the longer play is shorter")?;
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

/// Lets a tool run [`play`], and returns how many kicks there were.
fn play_under(tool: &mut Command, disk: &Path, batches: u64) -> Result<u64> {
    tool.arg(std::env::current_exe()?).arg("play").arg(disk).arg(batches.to_string());
    Ok(host::call(tool)?.trim().parse()?)
}

/// Plays driver and worker in turn for so many batches of reads of the file in `disk`, and prints
/// the number of kicks.
///
/// # Errors
///
/// When the host refuses something, or a read fails.
pub(crate) fn play(disk: &Path, batches: u64) -> Result<()> {
    let memory = load::guest_memory()?;
    let backend = RawFile::open(disk, &DiskOptions::new(CacheMode::WriteBack).read_only())?;
    let capacity = backend.geometry().capacity;
    let block = Block::new("gate", "", 1, Arc::new(backend));
    block.negotiated(ours::FEATURES);

    let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let line = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let events = Events { kick: ours::own(&kick)?, interrupt: ours::own(&line)? };
    let mut driver = Driver::new(&memory, events, &RANDOM_READS, capacity)?;
    let queue = Queue::new(&memory, load::LAYOUT, ours::FEATURES)?;
    let interrupt = Interrupt::fixed(line);
    let faults = FaultReporter::new(DeviceStatus::default(), interrupt.clone());
    let active = ActiveQueue::new(0, queue, kick, interrupt);
    let mut worker = block.worker(active, faults)?;

    ensure!(worker.round(), "the ring is empty before its driver starts");
    driver.offer_all()?;
    let mut left = batches * u64::from(RANDOM_READS.depth);
    while left > 0 {
        driver.arm_interrupt()?;
        serve_queue(&mut worker)?;
        left = left.saturating_sub(driver.turn()?);
    }
    println!("{}", driver.kicks);
    Ok(())
}

/// The worker's part, from its sleep to its next one. Its name is what callgrind is told to count.
#[inline(never)]
fn serve_queue<P: Protocol>(worker: &mut QueueWorker<P>) -> Result<()> {
    for _ in 0..2 {
        worker.wait()?;
        ensure!(worker.round(), "the worker has more to do than was offered");
    }
    Ok(())
}
