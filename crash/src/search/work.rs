//! The threads of an exploration: each takes a task, and adds what follows from it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::extend;
use super::options::{ExploreError, FoundState, SearchEnd, Stage};
use super::points::Points;
use super::queue::{Explored, Next, Queue, Task};
use super::runs::{Halt, Known, Run, Runs};
use super::samples::{sample, sample_at};
use super::shrink::{Reduced, reduce};
use crate::history::Recorded;
use crate::losses::{Loss, Losses};
use crate::name::StateName;

/// Most failing states that an exploration collects.
const FAILURES_MAX: usize = 100;
/// The longest wait for other threads before the limits are checked again.
const WAIT: Duration = Duration::from_millis(20);

/// The failures so far, and the reason of the end.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) failures: Vec<FoundState>,
    pub(crate) flaky: Vec<FoundState>,
    names: BTreeSet<StateName>,
    end: Option<SearchEnd>,
    error: Option<ExploreError>,
}

/// An exploration that runs.
pub(crate) struct Work<'r, 'a> {
    runs: &'r Runs<'a>,
    points: Points,
    queue: Mutex<Queue>,
    changed: Condvar,
    found: Mutex<Found>,
}

/// The work that follows from a task.
#[derive(Default)]
struct Follows {
    states: Vec<StateName>,
    explored: Vec<Explored>,
}

/// Ends the exploration if a check panics, as other threads would wait for its task.
struct EndOnPanic<'f> {
    found: &'f Mutex<Found>,
}

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.end.get_or_insert(SearchEnd::Stopped);
        }
    }
}

impl<'r, 'a> Work<'r, 'a> {
    pub(crate) fn new(runs: &'r Runs<'a>, points: Points) -> Self {
        let options = runs.options;
        let samples = if options.exhaustive { 0 } else { options.samples };
        let queue = Queue::new(points.all.clone(), options.exhaustive, samples);
        Self {
            runs,
            points,
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            found: Mutex::default(),
        }
    }

    /// Explores with as many threads as the options say. The result is why it ended, what it
    /// found, and the number of power cuts.
    pub(crate) fn run(self) -> Result<(SearchEnd, Found, u64), ExploreError> {
        std::thread::scope(|scope| {
            for number in 1..self.runs.options.jobs.max(1) {
                let thread = std::thread::Builder::new().name(format!("check/{number}"));
                // Without a further thread the others do its work.
                if thread.spawn_scoped(scope, || self.thread()).is_err() {
                    break;
                }
            }
            self.thread();
        });
        let queue = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = found.error.take() {
            return Err(error);
        }
        let end = if queue.overflown { SearchEnd::Memory } else { SearchEnd::Complete };
        Ok((found.end.unwrap_or(end), found, queue.points_taken))
    }

    fn thread(&self) {
        let _end = EndOnPanic { found: &self.found };
        while let Some(task) = self.next() {
            let follows = self.task(task).unwrap_or_else(|halt| {
                self.halt(halt);
                Follows::default()
            });
            let mut queue = self.queue();
            queue.done(follows.states, follows.explored);
            self.runs.waiting.store(queue.waiting(), Relaxed);
            drop(queue);
            self.changed.notify_all();
        }
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Task> {
        let mut queue = self.queue();
        loop {
            if self.is_over() {
                return None;
            }
            match queue.take() {
                Next::Take(task) => {
                    self.runs.enter(queue.stage().map_or(Stage::Samples, Stage::Lost));
                    return Some(task);
                }
                Next::Done => return None,
                Next::Wait => {
                    let waited = self.changed.wait_timeout(queue, WAIT);
                    queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Whether the exploration was ended, or a limit ends it.
    fn is_over(&self) -> bool {
        let over = self.found().end.is_some() || self.found().error.is_some();
        if over {
            return true;
        }
        match self.runs.budget() {
            Ok(()) => false,
            Err(halt) => {
                self.halt(halt);
                true
            }
        }
    }

    fn halt(&self, halt: Halt) {
        let mut found = self.found();
        match halt {
            Halt::End(end) => {
                found.end.get_or_insert(end);
            }
            Halt::Error(error) => {
                found.error.get_or_insert(error);
            }
        }
    }

    fn task(&self, task: Task) -> Result<Follows, Halt> {
        let options = self.runs.options;
        let history = &self.runs.recording.source().history;
        match task {
            Task::State(state) => self.explore(state),
            Task::Extend(explored) => Ok(self.extend(&explored)),
            Task::SampleAt(point) => {
                self.explore_sample(sample_at(history, point, options.atomicity, options.seed))
            }
            Task::Sample(number) => {
                let points = &self.points;
                let (atomicity, seed) = (options.atomicity, options.seed);
                self.explore_sample(sample(history, points, atomicity, seed, number))
            }
        }
    }

    fn explore_sample(&self, state: Option<StateName>) -> Result<Follows, Halt> {
        if let Some(state) = state {
            self.explore(state)?;
        }
        Ok(Follows::default())
    }

    fn explore(&self, state: StateName) -> Result<Follows, Halt> {
        if self.is_known_failure(&state) {
            self.runs.pruned.fetch_add(1, Relaxed);
            return Ok(Follows::default());
        }
        let known = self.runs.verdict(&state)?;
        let Known { mut run, mut passed, failure } = known;
        if let Some(failure) = failure {
            let blocks = self.runs.blocks(&run);
            let mut reduced = reduce(self.runs, &state, failure, &blocks)?;
            if let Reduced::Flaky(_, passing) = &mut reduced
                && let Some(passing) = passing.take()
            {
                (run, passed) = (passing, true);
            }
            self.found_failing(reduced);
        }
        let options = self.runs.options;
        let more = options.exhaustive
            || passed && state.losses.len().is_some_and(|lost| lost < options.max_lost);
        let without = if passed { self.without_discards(&state, &run) } else { None };
        let mut follows = if more { self.further(state, run) } else { Follows::default() };
        follows.states.extend(without);
        Ok(follows)
    }

    /// The state without its flushed discards as well, if a run on it read what one of them had
    /// discarded.
    fn without_discards(&self, state: &StateName, run: &Run) -> Option<StateName> {
        let source = self.runs.recording.source();
        let is_none = state.discards || source.history.discards_from() > state.point;
        if is_none || self.runs.options.exhaustive {
            return None;
        }
        let blocks = self.runs.blocks(run);
        let sees_one = extend::sees_flushed_discard(source, state, &blocks);
        sees_one.then(|| StateName { discards: true, ..state.clone() })
    }

    /// Whether a state lost all that a failing state of the same power cut lost: that is one
    /// failure. In an exhaustive exploration each state counts for itself.
    fn is_known_failure(&self, state: &StateName) -> bool {
        let Losses::These(lost) = &state.losses else { return false };
        let history = &self.runs.recording.source().history;
        let has_lost = |write: u64, loss: &Loss| {
            lost.get(&write) == Some(loss)
                || state.discards && history.is_flushed_discard(write, state.point)
        };
        let within = |failing: &StateName| {
            let Losses::These(these) = &failing.losses else { return false };
            (state.discards || !failing.discards)
                && these.iter().all(|(write, loss)| has_lost(*write, loss))
        };
        let found = self.found();
        let names = found.failures.iter().map(|failing| &failing.name);
        let mut names = names.filter(|name| name.point == state.point);
        !self.runs.options.exhaustive && names.any(within)
    }

    /// A state whose further losses are to be explored.
    fn further(&self, state: StateName, run: Run) -> Follows {
        let mut explored = Vec::new();
        if !self.runs.options.exhaustive {
            explored.push(Explored { state: state.clone(), run: run.clone(), torn: true });
        }
        explored.push(Explored { state, run, torn: false });
        Follows { explored, ..Follows::default() }
    }

    fn extend(&self, explored: &Explored) -> Follows {
        let Explored { state, run, torn } = explored;
        let options = self.runs.options;
        let source = self.runs.recording.source();
        let blocks = self.runs.blocks(run);
        let further = if options.exhaustive {
            extend::pieces(source, options.atomicity, state, &blocks)
        } else {
            extend::writes(source, options.atomicity, state, &blocks, *torn)
        };
        let states = further.into_iter().map(|(write, loss)| self.with(state, write, &loss));
        Follows { states: states.collect(), ..Follows::default() }
    }

    fn with(&self, state: &StateName, write: u64, loss: &Loss) -> StateName {
        let mut losses = state.losses.with(write, loss);
        let history = &self.runs.recording.source().history;
        let sectors = history.request(write).map(Recorded::sectors);
        if let (Losses::These(these), Some(sectors)) = (&mut losses, sectors)
            && let Some(both) = these.get_mut(&write)
            && *both == Loss::Sectors(vec![(0, sectors)])
        {
            *both = Loss::Whole;
        }
        StateName { losses, ..state.clone() }
    }

    fn found_failing(&self, reduced: Reduced) {
        let mut found = self.found();
        let (state, is_flaky) = match reduced {
            Reduced::Failing(state) => (state, false),
            Reduced::Flaky(state, _) => (state, true),
        };
        if !found.names.insert(state.name.clone()) {
            return;
        }
        self.runs.failures.fetch_add(1, Relaxed);
        if is_flaky {
            found.flaky.push(state);
        } else {
            found.failures.push(state);
        }
        let full = found.failures.len() + found.flaky.len() >= FAILURES_MAX;
        if !self.runs.options.keep_going || full {
            found.end.get_or_insert(SearchEnd::Failure);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
