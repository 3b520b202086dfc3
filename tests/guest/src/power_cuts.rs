//! Power cuts of the host under a guest that writes and flushes: a few, and that a disk that drops
//! flushes is caught. `make crash` makes many (docs/power-cuts.md).

use anyhow::{Result, ensure};
use lab::Lab;
use powercut::{Lie, Outcome, Plan, ROWS, Row, Workload, run_group};

#[test]
fn flushed_records_outlive_power_cuts() -> Result<()> {
    Lab::find()?;
    let is_chosen = |row: &&Row| {
        let name = row.to_string();
        name.starts_with("bulkhead/none/ext4/blk/first-writes")
            && !row.is_host_fua
            && row.lie != Some(Lie::ReportEarly)
    };
    let rows: Vec<Row> = ROWS.iter().filter(is_chosen).copied().collect();
    ensure!(rows.len() == 2 && rows.iter().all(|row| row.workload == Workload::FirstWrites));
    let plan = Plan { cuts: 3, states: 4, seed: 1, time: None };
    let mut outcomes = Vec::new();
    run_group(&rows, plan, 0, |row, tally, is_last| {
        if is_last {
            println!("{row}: {tally:?}");
            outcomes.push((tally.outcome(row), tally.first.clone()));
        }
    })?;
    ensure!(outcomes.len() == 2);
    for (outcome, first) in &outcomes {
        // Three cuts may all be late in a pause: that nothing was lost then is no failure.
        let is_good = matches!(outcome, Outcome::Held | Outcome::ProvesNothing | Outcome::Caught);
        ensure!(is_good, "{outcomes:?}: {first:?}");
    }
    Ok(())
}
