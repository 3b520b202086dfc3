//! The crash simulator: the production queue worker, virtio-blk, virtio-scsi and io_uring engine
//! over a simulated kernel, with an oracle of the legal contents of the disk.
//!
//! Single-threaded, without clock or I/O: a seed determines a schedule, so that each failure can be
//! replayed step by step. docs/simulator.md describes the model and its limits.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    reason = "a simulation fails by panicking"
)]

mod block_request;
mod call;
mod chain;
mod content;
mod counts;
mod disk;
mod entry;
mod expected;
mod front;
mod host;
mod initiator;
mod medium;
mod oracle;
mod plan;
mod queue_driver;
mod resources;
mod scenario;
#[cfg(test)]
mod schedules;
mod scsi_command;
mod scsi_state;
mod simulation;
mod sleep;
mod trace;
mod watched_engine;

use std::fmt;

use self::plan::Plan;
use self::resources::Resources;
use fixtures::Random;

pub use self::counts::Counts;
pub use self::scenario::{Scenario, UnknownScenario};

/// A failed schedule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The scenario.
    pub scenario: Scenario,
    /// The seed of the schedule.
    pub seed: u64,
    /// The violation.
    pub violation: String,
    /// The smallest number of operations that still fails.
    pub operations: usize,
    /// The schedule, step by step.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, seed, violation, operations, trace } = self;
        for line in trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{violation}")?;
        writeln!(f, "reduced to {operations} operations; replay with")?;
        write!(f, "  make sim MODE={scenario} SEED={seed} SCHEDULES=1")
    }
}

/// Plays schedules, one at a time.
pub struct Simulator {
    resources: Resources,
}

impl Default for Simulator {
    fn default() -> Self {
        Self { resources: Resources::new() }
    }
}

impl Simulator {
    /// Plays the schedule of a seed.
    ///
    /// # Errors
    ///
    /// The violation and the trace of the shortest failing schedule of that seed.
    pub fn play(&self, scenario: Scenario, seed: u64) -> Result<Counts, Box<Failure>> {
        let first = match self.attempt(scenario, seed, usize::MAX, false).0 {
            Ok(counts) => return Ok(counts),
            Err(violation) => violation,
        };
        let fails = |limit: &usize| self.attempt(scenario, seed, *limit, false).0.is_err();
        let operations = (1..=64).find(fails).unwrap_or(usize::MAX);
        let (result, trace) = self.attempt(scenario, seed, operations, true);
        let violation = result.err().unwrap_or(first);
        Err(Box::new(Failure { scenario, seed, violation, operations, trace }))
    }

    /// The trace of a seed's schedule.
    #[must_use]
    pub fn trace(&self, scenario: Scenario, seed: u64) -> Vec<String> {
        self.attempt(scenario, seed, usize::MAX, true).1
    }

    /// Plays a schedule of at most `limit` operations.
    fn attempt(
        &self,
        scenario: Scenario,
        seed: u64,
        limit: usize,
        traced: bool,
    ) -> (Result<Counts, String>, Vec<String>) {
        let mut random = Random::new(seed);
        let mut plan = Plan::draw(scenario, &mut random);
        plan.operations = plan.operations.min(limit);
        let (result, mut trace) = simulation::play(&self.resources, &plan, &mut random, traced);
        trace.insert(0, format!("{plan:?}"));
        (result, trace)
    }
}
