//! `make crash`: cuts the power of the lab's host under guests and prints the matrix.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Parser;
use powercut::{Plan, ROWS, Row, Tally, run_group};

/// Cuts the power of an emulated host under guests that write and flush, and checks their disks.
#[derive(Parser)]
struct Arguments {
    /// Power cuts of each row.
    #[arg(long, default_value_t = 10)]
    cuts: u64,
    /// Disk states that are examined of each cut.
    #[arg(long, default_value_t = 4)]
    states: u64,
    /// Seed of the first cut of each row; the others count up from it [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Only rows whose name contains one of these words.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Start no cut after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print the matrix in JSON, and no progress.
    #[arg(long)]
    json: bool,
    /// List the rows.
    #[arg(long)]
    list: bool,
}

/// A seed of at most six digits from the clock.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 1000
}

fn print(row: &Row, tally: &Tally) {
    println!(
        "{:<48} {:>4} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>5}  {}",
        row.to_string(),
        tally.cuts,
        tally.states,
        tally.contents.len(),
        tally.flushed,
        tally.flushed_lost,
        tally.unflushed_lost,
        tally.unflushed_kept,
        tally.torn,
        tally.outcome(row),
    );
    if let Some(first) = &tally.first {
        println!("    {first}");
    }
    if tally.unreadable + tally.garbage + tally.repeated > 0 {
        println!(
            "    unreadable states {}, sectors of garbage {}, hosts started again {}",
            tally.unreadable, tally.garbage, tally.repeated
        );
    }
    if let Some(reason) = tally.repeat_reason.as_ref().and_then(|text| text.lines().next()) {
        println!("    the last was started again: {reason}");
    }
}

fn json(row: &Row, tally: &Tally) -> serde_json::Value {
    serde_json::json!({
        "row": row.to_string(), "outcome": tally.outcome(row).to_string(),
        "cuts": tally.cuts, "states": tally.states, "contents": tally.contents.len(),
        "flushed": tally.flushed, "flushed_lost": tally.flushed_lost,
        "unflushed_lost": tally.unflushed_lost, "unflushed_kept": tally.unflushed_kept,
        "torn": tally.torn, "garbage": tally.garbage, "unreadable": tally.unreadable,
        "repeated": tally.repeated, "disk_flushes": tally.disk_flushes, "disk_fua": tally.disk_fua,
         "writes_lost": tally.fates[0], "writes_kept": tally.fates[1],
        "writes_torn": tally.fates[2], "repeat_reason": tally.repeat_reason, "first": tally.first,
    })
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let is_chosen = |row: &&Row| {
        let name = row.to_string();
        arguments.rows.is_empty() || arguments.rows.iter().any(|word| name.contains(word))
    };
    let rows: Vec<Row> = ROWS.iter().filter(is_chosen).copied().collect();
    ensure!(!rows.is_empty(), "no such row");
    if arguments.list {
        rows.iter().for_each(|row| println!("{row}"));
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.seed.unwrap_or_else(seed_from_clock);
    let until = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let plan = Plan { cuts: arguments.cuts, states: arguments.states, seed, until };
    if !arguments.json {
        println!("SEED={seed}: {} cuts of each row, {} states each", plan.cuts, plan.states);
        println!(
            "{:<48} {:>4} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>5}",
            "monitor/cache/backing/bus/workload",
            "cuts",
            "states",
            "distinct",
            "flushed",
            "lost",
            "unfl.lost",
            "unfl.kept",
            "torn"
        );
    }
    let (mut is_bad, mut results) = (false, Vec::new());
    for group in rows.chunk_by(Row::shares_host) {
        run_group(group, plan, |row, tally| {
            is_bad |= tally.cuts > 0 && tally.outcome(row).is_bad();
            results.push(json(row, tally));
            if !arguments.json {
                print(row, tally);
            }
        })?;
    }
    if arguments.json {
        println!("{:#}", serde_json::Value::Array(results));
    }
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
