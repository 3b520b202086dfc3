//! Verdicts on states: known ones, and those of checks that are made.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use super::options::{ExploreError, ExploreOptions, Progress, SearchEnd, Stage};
use super::tree::{Read, RunEnd, RunTree};
use crate::check::{CheckError, Checker, Failure, Verdict};
use crate::name::StateName;
use crate::recording::Recording;
use crate::state::StateDisk;

/// Most reads of failing runs that wait for a repetition: some 30 MB.
const DOUBTED_READS_MAX: usize = 1_000_000;

/// Why a state has no verdict.
pub(crate) enum Halt {
    /// The exploration ends.
    End(SearchEnd),
    /// It fails.
    Error(ExploreError),
}

impl<E: Into<ExploreError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// The blocks that a run read.
#[derive(Clone)]
pub(crate) enum Run {
    /// Those on the way to a place in the tree.
    Remembered(RunEnd),
    /// These.
    Blocks(Arc<[u64]>),
}

/// The verdict on a state.
pub(crate) struct Known {
    pub(crate) run: Run,
    pub(crate) passed: bool,
    /// How the check failed, if it was made.
    pub(crate) failure: Option<Failure>,
}

/// Runs that failed once. They hold for other states when they failed again only: a check that is
/// not deterministic would hide what those states have.
#[derive(Default)]
struct Doubted {
    runs: HashMap<StateName, Vec<Read>>,
    reads: usize,
}

impl Doubted {
    /// The reads that decide for other states after a run: its own, and those of the run before
    /// if both failed. `None` if it decides for none yet.
    fn settle(
        &mut self,
        name: &StateName,
        reads: Vec<Read>,
        failure: Option<&Failure>,
    ) -> Option<Vec<Read>> {
        if failure.is_some_and(Failure::is_cut_short) {
            return None;
        }
        let before = self.runs.remove(name);
        self.reads -= before.as_ref().map_or(0, Vec::len);
        match (before, failure) {
            (None, None) => Some(reads),
            (Some(_), None) => None,
            (Some(mut all), Some(_)) => {
                let seen: HashSet<u64> = all.iter().map(|(block, _)| *block).collect();
                all.extend(reads.into_iter().filter(|(block, _)| !seen.contains(block)));
                Some(all)
            }
            (None, Some(_)) => {
                if self.reads + reads.len() > DOUBTED_READS_MAX {
                    *self = Self::default();
                }
                self.reads += reads.len();
                self.runs.insert(name.clone(), reads);
                None
            }
        }
    }
}

/// All checks of an exploration.
pub(crate) struct Runs<'a> {
    pub(crate) recording: &'a Recording,
    pub(crate) options: &'a ExploreOptions,
    checker: &'a dyn Checker,
    stop: &'a AtomicBool,
    report: &'a (dyn Fn(&Progress) + Sync),
    pub(crate) started: Instant,
    tree: RwLock<RunTree>,
    doubted: Mutex<Doubted>,
    pub(crate) checks: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) pruned: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) waiting: AtomicU64,
    stage: Mutex<Stage>,
}

impl<'a> Runs<'a> {
    pub(crate) fn new(
        recording: &'a Recording,
        options: &'a ExploreOptions,
        checker: &'a dyn Checker,
        stop: &'a AtomicBool,
        report: &'a (dyn Fn(&Progress) + Sync),
    ) -> Self {
        Self {
            recording,
            options,
            checker,
            stop,
            report,
            started: Instant::now(),
            tree: RwLock::default(),
            doubted: Mutex::default(),
            checks: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            pruned: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            stage: Mutex::default(),
        }
    }

    /// The verdict on a state, by a check if it is not known.
    pub(crate) fn verdict(&self, name: &StateName) -> Result<Known, Halt> {
        match self.known(name)? {
            Some((end, passed)) => {
                self.pruned.fetch_add(1, Relaxed);
                Ok(Known { run: Run::Remembered(end), passed, failure: None })
            }
            None => {
                self.budget()?;
                self.check(name)
            }
        }
    }

    /// Whether a state fails, for the reduction of a failure.
    pub(crate) fn fails(&self, name: &StateName) -> Result<bool, Halt> {
        if let Some((_, passed)) = self.known(name)? {
            return Ok(!passed);
        }
        Ok(!self.repeat(name)?.passed)
    }

    /// The verdict on a state by a check, whether it is known or not.
    pub(crate) fn repeat(&self, name: &StateName) -> Result<Known, Halt> {
        self.stopped()?;
        self.repeated.fetch_add(1, Relaxed);
        self.check(name)
    }

    /// The blocks that a run read.
    pub(crate) fn blocks(&self, run: &Run) -> Arc<[u64]> {
        match run {
            Run::Blocks(blocks) => Arc::clone(blocks),
            Run::Remembered(end) => {
                self.tree.read().unwrap_or_else(PoisonError::into_inner).blocks(*end).into()
            }
        }
    }

    pub(crate) fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the exploration continues.
    pub(crate) fn budget(&self) -> Result<(), Halt> {
        self.stopped()?;
        let searched =
            self.checks.load(Relaxed) - self.repeated.load(Relaxed).min(self.checks.load(Relaxed));
        if self.options.states.is_some_and(|most| searched >= most) {
            return Err(Halt::End(SearchEnd::States));
        }
        if self.options.time.is_some_and(|most| self.started.elapsed() >= most) {
            return Err(Halt::End(SearchEnd::Time));
        }
        Ok(())
    }

    fn stopped(&self) -> Result<(), Halt> {
        if self.stop.load(Relaxed) { Err(Halt::End(SearchEnd::Stopped)) } else { Ok(()) }
    }

    fn known(&self, name: &StateName) -> Result<Option<(RunEnd, bool)>, Halt> {
        if !self.options.pruning {
            return Ok(None);
        }
        let source = self.recording.source();
        let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        let found = tree.find(|block| source.identity(block, name));
        found.map_err(|source| ExploreError::Read { name: name.clone(), source }.into())
    }

    fn check(&self, name: &StateName) -> Result<Known, Halt> {
        let disk = self.recording.unverified(name.clone());
        let verdict = self.checker.check(Arc::<StateDisk>::clone(&disk));
        if let Some(source) = disk.take_fault() {
            return Err(ExploreError::Read { name: name.clone(), source }.into());
        }
        let failure = match verdict {
            Ok(Verdict::Passed) => None,
            Ok(Verdict::Failed(failure)) => Some(failure),
            Err(CheckError::Stopped) => return Err(Halt::End(SearchEnd::Stopped)),
            Err(source) => return Err(ExploreError::Check { name: name.clone(), source }.into()),
        };
        self.checks.fetch_add(1, Relaxed);
        let reads = disk.reads();
        let passed = failure.is_none();
        let blocks = reads.iter().map(|(block, _)| *block).collect();
        let end = self.options.pruning.then(|| self.remember(name, reads, failure.as_ref()));
        let run = end.flatten().map_or(Run::Blocks(blocks), Run::Remembered);
        (self.report)(&self.progress());
        Ok(Known { run, passed, failure })
    }

    /// Adds what a run tells of other states to the tree.
    fn remember(
        &self,
        name: &StateName,
        reads: Vec<Read>,
        failure: Option<&Failure>,
    ) -> Option<RunEnd> {
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = doubted.settle(name, reads, failure)?;
        drop(doubted);
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.insert(&reads, failure.is_none())
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            checks: self.checks.load(Relaxed),
            pruned: self.pruned.load(Relaxed),
            failures: self.failures.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            stage: self.stage(),
            elapsed: self.started.elapsed(),
        }
    }
}
