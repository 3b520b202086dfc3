//! `make chaos`: a chaos run with a random seed, or with a given one.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos::{Plan, run};
use clap::Parser;

/// Runs bulkhead under verified load while the host disturbs it.
#[derive(Parser)]
struct Arguments {
    /// Length of the run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the schedule and of the requests [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Print a report in JSON, and no progress.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(seed_from_clock);
    let length = Duration::from_secs(arguments.seconds);
    let prints = !arguments.json;
    if prints {
        println!("SEED={seed}: {} s", arguments.seconds);
    }
    match run(Plan { seed, length, prints }) {
        Ok(report) if arguments.json => println!("{:#}", report.json()),
        Ok(report) => println!("{report}"),
        Err(failure) => {
            println!("{failure}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A seed of at most six digits from the clock.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 1000
}
