//! The crash simulator: the production queue worker, virtio-blk and io_uring engine over a host
//! that is simulated down to the two queues of its ring, with an oracle that knows what may be on
//! the disk.
//!
//! One thread, no clock, no I/O: a seed determines everything, so that each failure can be played
//! again step by step. docs/simulator.md says what is modelled and what is not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    reason = "a simulation fails by panicking"
)]

mod call;
mod content;
mod disk;
mod entry;
mod guest;
mod host;
mod media;
mod oracle;
mod plan;
mod random;
#[cfg(test)]
mod schedules;
mod world;

use std::fmt;

use self::plan::Plan;
use self::random::Random;
use self::world::Bench;

pub use self::plan::{Scenario, UnknownScenario};
pub use self::world::Counts;

/// A schedule that ended wrongly.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the disk and the driver agreed on.
    pub scenario: Scenario,
    /// The seed of the schedule.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
    /// The fewest operations that still show it.
    pub operations: usize,
    /// The schedule, step by step.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, seed, what, operations, trace } = self;
        for line in trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{what}")?;
        writeln!(f, "cut down to {operations} operations; once more with")?;
        write!(f, "  make sim MODE={scenario} SEED={seed} SCHEDULES=1")
    }
}

/// Plays schedules, one at a time.
pub struct Simulator {
    bench: Bench,
}

impl Default for Simulator {
    fn default() -> Self {
        Self { bench: Bench::new() }
    }
}

impl Simulator {
    /// Plays the schedule of a seed.
    ///
    /// # Errors
    ///
    /// What went wrong, with the shortest schedule of that seed that shows it.
    pub fn play(&self, scenario: Scenario, seed: u64) -> Result<Counts, Box<Failure>> {
        let first = match self.attempt(scenario, seed, usize::MAX, false).0 {
            Ok(counts) => return Ok(counts),
            Err(what) => what,
        };
        let fails = |most: &usize| self.attempt(scenario, seed, *most, false).0.is_err();
        let operations = (1..=64).find(fails).unwrap_or(usize::MAX);
        let (result, trace) = self.attempt(scenario, seed, operations, true);
        let what = result.err().unwrap_or(first);
        Err(Box::new(Failure { scenario, seed, what, operations, trace }))
    }

    /// The schedule of a seed, step by step.
    #[must_use]
    pub fn trace(&self, scenario: Scenario, seed: u64) -> Vec<String> {
        self.attempt(scenario, seed, usize::MAX, true).1
    }

    /// Plays a schedule with at most `most` operations.
    fn attempt(
        &self,
        scenario: Scenario,
        seed: u64,
        most: usize,
        traced: bool,
    ) -> (Result<Counts, String>, Vec<String>) {
        let mut random = Random::new(seed);
        let mut plan = Plan::draw(scenario, &mut random);
        plan.operations = plan.operations.min(most);
        let (result, mut trace) = world::play(&self.bench, &plan, &mut random, traced);
        trace.insert(0, format!("{plan:?}"));
        (result, trace)
    }
}
