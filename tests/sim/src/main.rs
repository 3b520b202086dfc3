//! `make sim`: plays random schedules of the crash simulator, or replays one.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use sim::{Counts, Scenario, Simulator};

/// Seed of the current schedule, printed by the panic hook.
static PLAYED: AtomicU64 = AtomicU64::new(0);

/// Plays random schedules of requests, faults and power cuts against the storage engine.
#[derive(Parser)]
struct Arguments {
    /// Seed of the first schedule; the others count up from it [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Schedules per mode [default: 1 with a seed, else 100,000].
    #[arg(long)]
    schedules: Option<u64>,
    /// none, directsync, writethrough, writeback, unsafe, toggle, noflush, blocks, hold, zeroes,
    /// kill, compare, threads, scsi, units or layers, or layers-none and so on [default: all].
    #[arg(long)]
    mode: Option<Scenario>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let schedules =
        arguments.schedules.unwrap_or(if arguments.seed.is_some() { 1 } else { 100_000 });
    let seed = arguments.seed.unwrap_or_else(seed_from_clock);
    let scenarios = arguments.mode.map_or_else(|| Scenario::ALL.to_vec(), |mode| vec![mode]);
    println!("{schedules} schedules per mode from seed {seed}");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        println!("SEED={} panicked", PLAYED.load(Ordering::Relaxed));
    }));
    let simulator = Simulator::default();
    let mut passed = true;
    for scenario in scenarios {
        passed &= play_all(&simulator, scenario, seed, schedules);
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play_all(simulator: &Simulator, scenario: Scenario, first: u64, schedules: u64) -> bool {
    let start = Instant::now();
    let mut total = Counts::default();
    for played in 0..schedules {
        let seed = first.wrapping_add(played);
        PLAYED.store(seed, Ordering::Relaxed);
        let outcome = simulator.play(scenario, seed);
        match outcome {
            Ok(counts) => total.add(counts),
            Err(failure) => {
                println!("{failure}");
                println!("{scenario}: schedule {} failed", played + 1);
                return false;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{scenario:>12}: {schedules} schedules, {total}, {seconds:.1} s: all legal");
    true
}

/// A seed of at most six digits from the clock.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 1000
}
