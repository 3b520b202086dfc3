//! `make crash`: cuts the power of the lab's host under guests, explores the states that recorded
//! workloads could have left, and prints what was found.

mod report;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Parser;
use crash_tests::{Exploration, Limits, explorations};
use powercut::{Plan, ROWS, Row, run_group};
use report::Report;

/// Cuts the power of an emulated host under guests that write and flush, and checks their disks.
/// Then explores the states that recorded workloads of this machine could have left.
#[derive(Parser)]
struct Arguments {
    /// Power cuts of each row.
    #[arg(long, default_value_t = 6)]
    cuts: u64,
    /// Disk states that are examined of each cut.
    #[arg(long, default_value_t = 4)]
    states: u64,
    /// Hosts whose power is cut at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    hosts: u8,
    /// Time for the explorations without a planted fault, in seconds.
    #[arg(long, default_value_t = 180)]
    explore: u64,
    /// Runs this long, instead of a number of cuts: two thirds of it for power cuts.
    #[arg(long, conflicts_with_all = ["cuts", "explore"])]
    hours: Option<f64>,
    /// Seed of the first cut of each row; the others count up from it [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Only rows and explorations whose names contain one of these words.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Fails with fewer power cuts.
    #[arg(long, default_value_t = 0)]
    least_cuts: u64,
    /// Fails with fewer explored states.
    #[arg(long, default_value_t = 0)]
    least_states: u64,
    /// Print all in JSON, at the end.
    #[arg(long)]
    json: bool,
    /// List the rows and explorations.
    #[arg(long)]
    list: bool,
}

impl Arguments {
    fn has_chosen(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|word| name.contains(word))
    }
}

/// A seed of at most six digits from the clock.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 1000
}

/// Makes the power cuts, in this time or as many as asked for, on several hosts at a time. A lab
/// that fails loses its rows only.
fn cut(rows: &[Row], arguments: &Arguments, seed: u64, time: Option<Duration>, to: &Mutex<Report>) {
    let end = time.map(|time| Instant::now() + time);
    let groups = Mutex::new(rows.chunk_by(Row::shares_host).collect::<VecDeque<_>>());
    let work = |worker| {
        loop {
            let mut waiting = lock(&groups);
            // The groups that wait share the time of all workers.
            let turns = u32::try_from(waiting.len().div_ceil(arguments.hosts.into())).unwrap_or(1);
            let Some(group) = waiting.pop_front() else { return };
            drop(waiting);
            let time = end.map(|end| end.saturating_duration_since(Instant::now()) / turns);
            let plan = Plan { cuts: arguments.cuts, time, states: arguments.states, seed };
            let run = run_group(group, plan, worker, |row, tally, is_last| {
                lock(to).add_row(row, tally, is_last);
            });
            if let Err(error) = run {
                lock(to).add_failure(&format!("{error:#}"));
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..arguments.hosts.into() {
            scope.spawn(move || work(worker));
        }
    });
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Explores within this time, which the explorations share.
fn explore(chosen: &[Exploration], seed: u64, time: Duration, to: &mut Report) {
    /// Time limit of one that ends when it finds its fault.
    const CONTROL: Duration = Duration::from_secs(120);
    let mut time_left = time;
    let mut left =
        u32::try_from(chosen.iter().filter(|one| !one.is_control()).count()).unwrap_or(1);
    for exploration in chosen {
        let time = if exploration.is_control() {
            CONTROL
        } else {
            let share = time_left / left.max(1);
            left = left.saturating_sub(1);
            share
        };
        match exploration.run(Limits { time, states: None, seed }) {
            Ok((judgement, outcome)) => {
                if !exploration.is_control() {
                    time_left = time_left.saturating_sub(outcome.elapsed);
                }
                to.add_exploration(exploration, judgement, &outcome);
            }
            Err(error) => to.add_failure(&format!("{}: {error:#}", exploration.name())),
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let has_chosen = |row: &&Row| arguments.has_chosen(&row.to_string());
    let rows: Vec<Row> = ROWS.iter().filter(has_chosen).copied().collect();
    let mut explored = explorations();
    explored.retain(|one| arguments.has_chosen(one.name()));
    ensure!(!rows.is_empty() || !explored.is_empty(), "no such row");
    if arguments.list {
        rows.iter().for_each(|row| println!("{row}"));
        explored.iter().for_each(|one| println!("{}", one.name()));
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.seed.unwrap_or_else(seed_from_clock);
    let total = arguments.hours.map(|hours| Duration::try_from_secs_f64(hours * 3600.0));
    let total = total.transpose()?;
    let start = Instant::now();
    let mut report = Mutex::new(Report::new(arguments.json, seed, total));
    if !rows.is_empty() {
        lock(&report).begin_rows();
        cut(&rows, &arguments, seed, total.map(|total| total * 2 / 3), &report);
    }
    let report = report.get_mut().unwrap_or_else(PoisonError::into_inner);
    if !explored.is_empty() {
        report.begin_explorations();
        let time = total.map_or(Duration::from_secs(arguments.explore), |total| {
            total.saturating_sub(start.elapsed())
        });
        explore(&explored, seed, time, report);
    }
    let is_good = report.finish(arguments.least_cuts, arguments.least_states);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
