//! Workers of a layered disk: an engine with a ring for each level.
//!
//! With calls in one level the engine sleeps in that level's ring, else by a poll of the signals of
//! all.

use std::time::Duration;

use super::{Phase, RunningWorker, Simulation};

impl Simulation<'_> {
    /// Notes the rings of the engine that the worker has made last.
    pub(super) fn find_levels(&mut self, at: usize) {
        let Some(chain) = &self.plan.chain else { return };
        let end = self.units[0].host.lock().rings();
        let Some(first) = end.checked_sub(chain.files()) else { return };
        self.workers[at].rings = (first..end).map(|ring| (0, ring)).collect();
    }

    /// Notes where the worker sleeps, after it has run.
    pub(super) fn note_sleep_in_levels(&mut self, at: usize) {
        if self.plan.chain.is_none() {
            return;
        }
        let worker = &mut self.workers[at];
        let mut host = self.units[0].host.lock();
        let (ring, until) = (host.slept_in.take(), host.slept_until.take());
        let is_asleep = worker.phase == Phase::Asleep;
        worker.sleeps_until = until.filter(|_| is_asleep);
        if let Some(ring) = ring {
            worker.ring.1 = ring;
        }
        let other = |ring: &usize| !is_asleep || until.is_some() || *ring != worker.ring.1;
        let others = worker.rings.iter().map(|(_, ring)| *ring).filter(other);
        others.for_each(|ring| host.clear_deadline(ring));
    }

    /// Whether the worker does not sleep, or its sleep would end.
    pub(super) fn is_awake_in_levels(&self, worker: &RunningWorker) -> bool {
        let host = self.units[0].host.lock();
        match worker.sleeps_until {
            _ if worker.phase != Phase::Asleep => true,
            None => host.is_readable(worker.ring.1),
            Some(until) => {
                until.is_some_and(|until| until <= self.clock.now())
                    || worker.rings.iter().any(|(_, ring)| host.is_signalled(*ring))
            }
        }
    }

    /// The time until the worker's sleep with calls in several levels ends.
    pub(super) fn left_in_levels(&self, worker: &RunningWorker) -> Option<Duration> {
        Some(worker.sleeps_until??.saturating_duration_since(self.clock.now()))
    }

    /// Kicks the only ring of a worker, or those of all levels.
    pub(super) fn kick_rings(&self, at: usize) {
        let RunningWorker { ring, rings, .. } = &self.workers[at];
        let rings = if rings.is_empty() { std::slice::from_ref(ring) } else { rings };
        let mut host = self.units[0].host.lock();
        rings.iter().for_each(|(_, ring)| host.kick(*ring));
    }
}
