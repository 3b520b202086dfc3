//! Random schedules of a layered disk over files that reorder, fail and lose everything that no
//! flush has covered: two engines, requests that share blocks, resets, cancellations, and power
//! cuts, after which the disk is read from what is left.
//!
//! `BULKHEAD_LAYER_SCHEDULES` sets the number of schedules, `BULKHEAD_LAYER_SEED` the first seed.

mod counts;
mod layout;
mod oracle;
mod schedule;
mod snapshot;
mod store;

use self::counts::Counts;
use self::schedule::Schedule;
use crate::{ByteOffset, IoEngine, Operation};

/// Size of a sector, the unit of requests and of torn writes, in bytes.
const SECTOR: usize = 512;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let (seed, count) =
        (number("BULKHEAD_LAYER_SEED", 1), number("BULKHEAD_LAYER_SCHEDULES", 2000));
    let mut totals = Counts::default();
    for seed in seed..seed + count {
        // The seed of a failure is in its report.
        totals.add(Schedule::new(seed).play());
    }
    println!("{count} schedules from seed {seed}: {totals:?}");
    assert!(count < 100 || totals.all_occurred(), "{totals:?}");
}

/// A partial write copies the rest of its block, over which another write must not be made.
#[test]
fn merged_writes_exclude_others_from_all_their_blocks() {
    let write =
        |sector: usize| Operation::volatile_transfer(ByteOffset((sector * SECTOR) as u64), true);
    let mut merged = 0;
    for seed in 0..20 {
        let mut schedule = Schedule::new(seed);
        schedule.push_op(0, 0, write(0), 0, 8);
        schedule.push_op(0, 1, write(8), 8, 8);
        schedule.submit();
        // Half of them were submitted one by one.
        if schedule.queues[0].pending() == 1 {
            merged += 1;
            assert_eq!(schedule.queues[0].engine.parked(), 2);
        }
        for sector in [1, 9] {
            schedule.push_op(1, u16::try_from(sector / 8).unwrap(), write(sector), sector, 1);
        }
        schedule.submit();
        assert_eq!(schedule.queues[1].pending(), 0, "seed {seed}: a block was not claimed");
        schedule.drain();
        assert_eq!(schedule.queues[0].engine.parked(), 0);
    }
    assert!(merged > 0);
}
