//! One chaos run from start to report.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fixtures::host::Loop;
use fixtures::{Ext4, Random, scratch, wait_for};
use lab::bulkhead_binary;
use tempfile::TempDir;

use crate::disturber::Disturber;
use crate::events::Events;
use crate::ledger::Ledger;
use crate::load::Tally;
use crate::memory_group::MemoryGroup;
use crate::process::{Disk, Process};
use crate::report::{ProcessReport, Report};
use crate::schedule::draw;
use crate::usage::{Usage, descriptors};

/// Bytes of each disk.
const DISK_BYTES: u64 = 16 << 20;
/// Growth of a process's resident memory that counts as flat.
const FLAT_KIB: u64 = 8 << 10;
/// Index of the process whose store loses power at the end.
const CRASHED: usize = 1;
/// Time at the end of a run for the final measurement and verification.
const END: Duration = Duration::from_secs(4);

/// The parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Determines the disturbances and the requests.
    pub seed: u64,
    /// Approximate length.
    pub length: Duration,
    /// Whether to print each disturbance.
    pub prints: bool,
}

/// A failed run.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    error: anyhow::Error,
    events: Vec<String>,
    logs: Vec<(&'static str, String)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, log) in &self.logs {
            writeln!(f, "last log lines of {name}:")?;
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(12)..] {
                writeln!(f, "    {line}")?;
            }
        }
        writeln!(f, "last events:")?;
        for line in &self.events {
            writeln!(f, "{line}")?;
        }
        write!(f, "SEED={}: failed: {:#}", self.seed, self.error)
    }
}

/// Runs `plan`.
///
/// # Errors
/// If anything was lost, hung, leaked, or ended disorderly.
pub fn run(plan: Plan) -> Result<Report, Box<Failure>> {
    let mut events = Events::new(plan.prints);
    let folder = TempDir::new_in(scratch()).unwrap();
    let mut logs = Vec::new();
    play(plan, folder.path(), &mut events, &mut logs).map_err(|error| {
        let events = events.last(15).to_vec();
        Box::new(Failure { seed: plan.seed, error, events, logs })
    })
}

fn play(
    plan: Plan,
    folder: &Path,
    events: &mut Events,
    logs: &mut Vec<(&'static str, String)>,
) -> Result<Report> {
    let mut random = Random::new(plan.seed);
    let store = Ext4::new(4096);
    let device = Loop::new(&sized(&store.path().join("device"))?);
    let processes = processes(folder, &store, &device)?;
    let mut disturber = Disturber::new(processes, store, device);
    let result = disturb(plan, &mut random, &mut disturber, events);
    if result.is_err() {
        logs.extend(disturber.processes.iter().map(|one| (one.name, one.program.log())));
    }
    result
}

fn processes(folder: &Path, store: &Ext4, device: &Loop) -> Result<Vec<Process>> {
    let binary = bulkhead_binary()?;
    let direct = sized(&folder.join("direct.img"))?;
    let cached = sized(&store.path().join("cached"))?;
    let unused = sized(&folder.join("unused.img"))?;
    let service = |name, image, keys, on_store| {
        Process::service(&binary, folder, Disk { name, image, keys, on_store })
    };
    Ok(vec![
        service("direct", direct, "cache = \"none\"", false)?,
        service("cached", cached, "cache = \"writeback\"", true)?,
        service("threads", device.0.clone(), "cache = \"none\"\nengine = \"threads\"", true)?,
        Process::machine(&binary, folder, unused)?,
    ])
}

fn sized(path: &Path) -> Result<std::path::PathBuf> {
    File::create(path)?.set_len(DISK_BYTES)?;
    Ok(path.to_owned())
}

fn disturb(
    plan: Plan,
    random: &mut Random,
    disturber: &mut Disturber,
    events: &mut Events,
) -> Result<Report> {
    for (number, process) in disturber.processes.iter_mut().enumerate() {
        process.start(disturber.group.as_ref())?;
        let requests = random.fork();
        if process.name != "machine" {
            process.start_load(number as u64, DISK_BYTES, requests);
        }
    }
    let warm_up = (plan.length / 8).clamp(Duration::from_secs(2), Duration::from_secs(10));
    let deadline = plan.length.saturating_sub(END);
    let steps = draw(random, warm_up, deadline, disturber.processes.len());
    disturber.rest(warm_up.saturating_sub(events.elapsed()))?;
    disturber.processes.iter().try_for_each(Process::check_progress)?;
    // The connections of the checks are closed meanwhile.
    disturber.rest(Duration::from_millis(300))?;
    for process in &mut disturber.processes {
        process.before = process.measure()?;
    }
    events.add("warmed up: the disturbances begin");
    disturber.play(steps, deadline, events)?;
    events.add("all disturbances have ended");
    for process in &mut disturber.processes {
        process.check_progress()?;
        process.after = settled(process)?;
    }
    finish(plan, disturber, events)
}

/// Waits until the resources of a process are as before the disturbances.
fn settled(process: &Process) -> Result<Usage> {
    let before = process.before;
    let flat = wait_for(|| match process.measure() {
        Ok(now) if !is_flat(&before, &now) => None,
        other => Some(other),
    });
    let now = flat.unwrap_or_else(|| process.measure())?;
    let open = process.program.pid().map(descriptors);
    ensure!(
        is_flat(&before, &now),
        "{} grew from {before:?} to {now:?}; its descriptors: {open:?}",
        process.name
    );
    Ok(now)
}

fn is_flat(before: &Usage, now: &Usage) -> bool {
    now.resident_kib <= before.resident_kib + FLAT_KIB
        && now.threads <= before.threads
        && now.descriptors <= before.descriptors
}

/// Kills a service on the store and cuts the store's power; each flushed write must be there.
fn cut_power(disturber: &mut Disturber, events: &mut Events) -> Result<ProcessReport> {
    let process = &mut disturber.processes[CRASHED];
    let (ledger, tally) =
        process.crash().with_context(|| format!("the disk of {}", process.name))?;
    disturber.device = None;
    disturber.store.cut_power();
    let disk = CRASHED as u64;
    let blocks = process.verify_image(disk, &ledger, Ledger::check_after_power_cut)?;
    let lost = Cell::new(0);
    process.verify_image(disk, &ledger, |ledger, block, content| {
        lost.set(lost.get() + u64::from(ledger.check(block, content).is_err()));
        Ok(())
    })?;
    let name = process.name;
    events.add(&format!("{name:8} power cut: {} blocks lost an unflushed write", lost.get()));
    Ok(report(process, Some(tally), blocks))
}

fn report(process: &Process, tally: Option<Tally>, image_blocks: u64) -> ProcessReport {
    let (name, before, after) = (process.name, process.before, process.after);
    ProcessReport { name, tally, image_blocks, before, after }
}

/// Verifies all disks, ends the processes, and verifies the images.
fn finish(plan: Plan, disturber: &mut Disturber, events: &mut Events) -> Result<Report> {
    let mut processes = Vec::new();
    for (number, process) in disturber.processes.iter_mut().enumerate() {
        if number == CRASHED {
            continue;
        }
        let verified = process.finish_load()?;
        process.terminate()?;
        let (image_blocks, tally) = match verified {
            Some((ledger, tally)) => {
                (process.verify_image(number as u64, &ledger, Ledger::check)?, Some(tally))
            }
            None => (0, None),
        };
        processes.push(report(process, tally, image_blocks));
    }
    processes.insert(CRASHED, cut_power(disturber, events)?);
    let missing = processes
        .iter()
        .filter_map(|one| one.tally)
        .find(|tally| tally.reads.min(tally.writes).min(tally.flushes).min(tally.discards) == 0);
    ensure!(missing.is_none(), "a disk had no request of some kind: the run is void");
    events.add("all disks and images are verified");
    Ok(Report {
        seed: plan.seed,
        took: events.elapsed(),
        processes,
        disturbances: disturber.occurrences.iter().map(|(kind, one)| (*kind, *one)).collect(),
        flood_sent: disturber.flood_counts.sent.load(Ordering::Relaxed),
        flood_answered: disturber.flood_counts.answered.load(Ordering::Relaxed),
        memory_limit: disturber.group.as_ref().map(MemoryGroup::limit),
    })
}
