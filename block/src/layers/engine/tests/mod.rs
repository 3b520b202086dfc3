//! Random schedules of a layered disk over files that reorder, fail and lose everything that no
//! flush has covered: two engines, requests that share blocks, resets, cancellations, and power
//! cuts, after which the disk is read from what is left.
//!
//! `BULKHEAD_LAYER_SCHEDULES` sets the number of schedules, `BULKHEAD_LAYER_SEED` the first seed.

mod oracle;
mod schedule;
mod store;

use self::schedule::Schedule;

/// Size of a sector, the unit of requests and of torn writes, in bytes.
const SECTOR: usize = 512;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let (seed, count) =
        (number("BULKHEAD_LAYER_SEED", 1), number("BULKHEAD_LAYER_SCHEDULES", 2000));
    let mut totals = schedule::Counts::default();
    for seed in seed..seed + count {
        // The seed of a failure is in its report.
        totals.add(&Schedule::new(seed).play());
    }
    println!("{count} schedules from seed {seed}: {totals:?}");
    assert!(count < 100 || totals.all_occurred(), "{totals:?}");
}
