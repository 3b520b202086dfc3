//! Some schedules of each mode, from fixed seeds and from one of the clock.
//!
//! `make sim` plays many more. A failure prints its trace and the command to replay it.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Counts, Scenario, Simulator};

/// Schedules per mode and kind of seed. A debug build plays a few hundred per second.
const SCHEDULES: u64 = 300;

/// Schedules that found a bug. A seed's schedule changes with the simulator: keep an entry only as
/// long as it fails without the fix.
const REGRESSIONS: [(&str, u64); 9] = [
    // The engine slept although it had harvested completions.
    ("writethrough", 1),
    // The write cache was disabled although the sync failed.
    ("toggle", 15),
    // A READ with FUA did not flush while the cache was off, or being switched off.
    ("scsi", 14),
    // It returned the data of a write in flight.
    ("scsi", 191),
    // An aborted write for which there was no space was held.
    ("scsi", 300),
    // An idle engine beside others was left with a result, and would not have been woken again.
    ("units", 4),
    // An aborted change of a layer was held for space at its next step.
    ("layers-none", 1_002_151),
    // So was the map for an aborted VERIFY.
    ("layers", 15319),
    // A write-back that was held had no request any more.
    ("layers", 2902),
];

fn play(simulator: &Simulator, scenario: Scenario, seed: u64) -> Counts {
    simulator.play(scenario, seed).unwrap_or_else(|failure| panic!("{failure}"))
}

fn play_all(name: &str) -> Counts {
    let scenario: Scenario = name.parse().unwrap_or_else(|error| panic!("{error}"));
    let simulator = Simulator::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
    println!("{name}: from seed {now}");
    let mut total = Counts::default();
    for seed in (1..=SCHEDULES).chain(u64::from(now)..u64::from(now) + SCHEDULES) {
        total.add(play(&simulator, scenario, seed));
    }
    assert!(total.requests > 10 * SCHEDULES, "the schedules submit requests");
    assert!(total.failed > 0 && total.failed < total.requests / 2, "some requests fail");
    total
}

#[test]
fn cache_mode_none() {
    play_all("none");
}

#[test]
fn cache_mode_directsync() {
    play_all("directsync");
}

#[test]
fn cache_mode_writethrough() {
    play_all("writethrough");
}

#[test]
fn cache_mode_writeback() {
    play_all("writeback");
}

#[test]
fn cache_mode_unsafe() {
    play_all("unsafe");
}

#[test]
fn write_cache_switched_live() {
    play_all("toggle");
}

#[test]
fn driver_without_flush_has_durable_writes() {
    play_all("noflush");
}

#[test]
fn partial_writes_of_host_blocks_do_not_conflict() {
    play_all("blocks");
}

#[test]
fn writes_are_held_for_space_until_deadline() {
    play_all("hold");
}

#[test]
fn writes_of_zeroes_are_detected() {
    let total = play_all("zeroes");
    assert!(total.zero_writes > SCHEDULES && total.detected > SCHEDULES, "{total}");
}

#[test]
fn image_stays_locked_until_last_call_of_killed_process() {
    let total = play_all("kill");
    assert!(total.kills > SCHEDULES && total.orphans > SCHEDULES, "{total}");
    assert!(total.refused > SCHEDULES / 4, "{total}");
}

#[test]
fn compare_and_write_is_atomic() {
    let total = play_all("compare");
    assert!(total.compared > SCHEDULES && total.miscompared > SCHEDULES, "{total}");
}

#[test]
fn thread_engine_keeps_the_same_promises() {
    let total = play_all("threads");
    assert!(total.compared > 0 && total.detected > 0 && total.orphans > 0, "{total}");
}

#[test]
fn scsi_commands_keep_their_promises() {
    let total = play_all("scsi");
    assert!(total.fua_reads > SCHEDULES / 2 && total.cache_offs > SCHEDULES / 4, "{total}");
    assert!(total.compared > SCHEDULES / 2 && total.miscompared > SCHEDULES / 2, "{total}");
    assert!(total.aborted > SCHEDULES && total.kills > SCHEDULES / 4, "{total}");
}

#[test]
fn disks_on_one_queue_do_not_wait_for_each_other() {
    let total = play_all("units");
    assert!(total.sleeps > 10 * SCHEDULES && total.freezes > SCHEDULES, "{total}");
    assert!(total.overtakes > SCHEDULES && total.aborted > SCHEDULES / 2, "{total}");
    assert!(total.kills > SCHEDULES / 10, "{total}");
}

#[test]
fn layers_keep_the_same_promises() {
    play_all("layers");
}

#[test]
fn regressions_stay_fixed() {
    let simulator = Simulator::default();
    for (name, seed) in REGRESSIONS {
        let scenario: Scenario = name.parse().unwrap_or_else(|error| panic!("{error}"));
        play(&simulator, scenario, seed);
    }
}

/// A seed plays the same schedule each time.
#[test]
fn seed_determines_schedule() {
    for scenario in Scenario::ALL {
        let trace = || Simulator::default().trace(scenario, 4711);
        let first = trace();
        assert!(first.len() > 3);
        assert_eq!(first, trace());
    }
}
