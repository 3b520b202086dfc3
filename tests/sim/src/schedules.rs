//! The crash simulator in small: some schedules of each mode, from a fixed seed and from the
//! clock's.
//!
//! `make sim` plays many more. A failure prints its schedule and the command that plays it again.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Counts, Scenario, Simulator};

/// Of each kind of seed. A debug build plays a few hundred in a second.
const SCHEDULES: u64 = 1000;

/// Schedules that once found a bug. What a seed draws changes with the simulator: an entry is worth
/// keeping only as long as it still fails without its fix.
const FOUND: [(&str, u64); 2] = [
    // The engine slept over completions it had harvested.
    ("writethrough", 1),
    // The write cache went off although it could not be emptied.
    ("toggle", 15),
];

fn play(simulator: &Simulator, scenario: Scenario, seed: u64) -> Counts {
    simulator.play(scenario, seed).unwrap_or_else(|failure| panic!("{failure}"))
}

fn play_all(name: &str) {
    let scenario: Scenario = name.parse().unwrap_or_else(|error| panic!("{error}"));
    let simulator = Simulator::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
    println!("{name}: from seed {now}");
    let mut total = Counts::default();
    for seed in (1..=SCHEDULES).chain(u64::from(now)..u64::from(now) + SCHEDULES) {
        total.add(play(&simulator, scenario, seed));
    }
    assert!(total.requests > 10 * SCHEDULES, "the schedules do something");
    assert!(total.failed > 0 && total.failed < total.requests / 2, "some requests fail");
}

#[test]
fn none_keeps_what_it_promises() {
    play_all("none");
}

#[test]
fn directsync_keeps_what_it_promises() {
    play_all("directsync");
}

#[test]
fn writethrough_keeps_what_it_promises() {
    play_all("writethrough");
}

#[test]
fn writeback_keeps_what_it_promises() {
    play_all("writeback");
}

#[test]
fn unsafe_loses_data_but_makes_none_up() {
    play_all("unsafe");
}

#[test]
fn a_write_cache_may_be_switched_live() {
    play_all("toggle");
}

#[test]
fn a_driver_that_cannot_flush_has_durable_writes() {
    play_all("noflush");
}

#[test]
fn parts_of_the_hosts_blocks_are_written_without_undoing_each_other() {
    play_all("blocks");
}

#[test]
fn what_finds_no_space_waits_for_it_and_not_for_ever() {
    play_all("hold");
}

#[test]
fn what_was_found_stays_fixed() {
    let simulator = Simulator::default();
    for (name, seed) in FOUND {
        let scenario: Scenario = name.parse().unwrap_or_else(|error| panic!("{error}"));
        play(&simulator, scenario, seed);
    }
}

/// The same seed plays the same schedule, step by step.
#[test]
fn a_seed_determines_its_schedule() {
    for scenario in Scenario::ALL {
        let trace = || Simulator::default().trace(scenario, 4711);
        let first = trace();
        assert!(first.len() > 3);
        assert_eq!(first, trace());
    }
}
