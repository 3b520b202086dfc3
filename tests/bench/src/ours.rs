//! This stack as a contestant: the production device on its transport, with its worker thread and
//! statistics.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use block::{Backend, CacheMode, DiskOptions, RawFile};
use devices::storage::{OperationKind, QueueStats};
use devices::virtio::Block;
use rustix::fs::OFlags;
use vmm_sys_util::eventfd::EventFd;

use super::figures::{Figures, WARM_UP};
use super::host::CpuClock;
use super::load::{self, Events, LoadDriver};
use super::workload::{Direction, Workload};
use driver::{Device, Machine, feature};

/// Negotiated features.
pub(super) const FEATURES: u64 =
    feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | feature::BLK_FLUSH;

/// Runs a workload on the disk image `path`.
///
/// # Errors
///
/// If a system call or a request fails.
pub(super) fn run(path: &Path, workload: &Workload, duration: Duration) -> Result<Figures> {
    run_paced(path, workload, duration, Duration::ZERO)
}

/// As [`run`], with a driver that sleeps for `pause` before each reap.
///
/// # Errors
///
/// As [`run`].
pub(super) fn run_paced(
    path: &Path,
    workload: &Workload,
    duration: Duration,
    pause: Duration,
) -> Result<Figures> {
    let read_only = workload.direction == Direction::Read;
    let options = DiskOptions { read_only, ..DiskOptions::new(CacheMode::WriteBack) };
    run_backend(Arc::new(RawFile::open(path, &options)?), workload, duration, pause)
}

/// As [`run`], on a disk with these options.
///
/// # Errors
///
/// As [`run`].
pub(super) fn run_with(
    path: &Path,
    options: &DiskOptions,
    workload: &Workload,
    duration: Duration,
) -> Result<Figures> {
    run_backend(Arc::new(RawFile::open(path, options)?), workload, duration, Duration::ZERO)
}

/// As [`run_paced`], on this disk.
///
/// # Errors
///
/// As [`run`].
pub(super) fn run_backend(
    backend: Arc<dyn Backend>,
    workload: &Workload,
    duration: Duration,
    pause: Duration,
) -> Result<Figures> {
    let memory = load::guest_memory()?;
    let capacity = backend.geometry().capacity;
    let block = Block::new("bench", "", 1, backend);
    let stats = Arc::clone(block.stats().first().context("the disk has no queue")?);
    let machine = Machine::with_memory(memory.clone(), vec![Box::new(block)]);
    let events = start(&machine)?;

    let _elsewhere = workload.move_driver()?;
    let mut driver = LoadDriver::new(&memory, events, workload, capacity)?;
    driver.run(WARM_UP)?;
    let cpu = CpuClock::of_other_threads()?;
    let before = Counts::of(&stats);
    let run = driver.run_paced(duration, pause)?;
    let cpu = cpu.elapsed()?;
    let counts = Counts::of(&stats).since(&before);
    ensure!(counts.requests >= run.requests, "the statistics miss requests");
    // A round enters the kernel at most once for I/O, and each poll yields the CPU.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let system_calls =
        (counts.rounds + counts.interrupts + counts.yields) as f64 / counts.requests as f64;
    Ok(Figures { system_calls: Some(system_calls), ..Figures::of(run, cpu) })
}

/// Initializes the device with the load generator's ring.
pub(super) fn start(machine: &Arc<Machine>) -> Result<Events> {
    let device = Device::find(machine, 1);
    ensure!(
        device.negotiate(device.offered_features() & FEATURES),
        "the device accepts the features it offered"
    );
    device.enable_queue(0, load::LAYOUT);
    device.enable_interrupts();
    device.start();
    let doorbell = machine.hypervisor.doorbell(device.function.doorbell(0));
    let line = device.queue_line(0);
    make_blocking(line.event())?;
    let kick = own(&doorbell.context("the queue has no doorbell")?)?;
    Ok(Events { kick, interrupt: own(line.event())? })
}

/// Makes reads of an eventfd block, as a guest sleeps until an interrupt.
pub(super) fn make_blocking(event: &EventFd) -> Result<()> {
    let event = own(event)?;
    let flags = rustix::fs::fcntl_getfl(&event)?;
    Ok(rustix::fs::fcntl_setfl(&event, flags - OFlags::NONBLOCK)?)
}

/// Duplicates an eventfd as a file.
pub(super) fn own(event: &EventFd) -> Result<File> {
    // SAFETY: the event owns the descriptor and outlives the borrow.
    let fd: OwnedFd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }.try_clone_to_owned()?;
    Ok(File::from(fd))
}

/// Counters of the device's statistics.
#[derive(Clone, Copy)]
struct Counts {
    requests: u64,
    rounds: u64,
    interrupts: u64,
    yields: u64,
}

impl Counts {
    fn of(stats: &QueueStats) -> Self {
        let requests = |kind| stats.kind(kind).requests.get();
        Self {
            requests: requests(OperationKind::Read) + requests(OperationKind::Write),
            rounds: stats.rounds.get(),
            interrupts: stats.interrupts.get(),
            yields: stats.yields.get(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            rounds: self.rounds - before.rounds,
            interrupts: self.interrupts - before.interrupts,
            yields: self.yields - before.yields,
        }
    }
}
