//! The explorations of `make crash`: what they record, check and expect.

use std::ffi::OsString;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use crash::host::{CheckOptions, HostChecker};
use crash::{Atomicity, Checker, ExploreOptions, Outcome, Recording, SearchEnd, explore};
use tempfile::TempDir;

use super::direct::record_in_memory;
use super::mini_db::{self, Fault, Recovery};
use super::recorded::Recorded;
use super::workloads::{FileSystem, files, lmdb, pattern, postgres, sqlite};

/// Transactions of the small database.
const TRANSACTIONS: u64 = 8;
/// An exploration that runs out of time before this many checks proves nothing.
const LEAST_CHECKS: u64 = 5;
/// Checks at a time.
const JOBS: usize = 2;

/// How far an exploration goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time.
    pub time: Duration,
    /// Most checks.
    pub states: Option<u64>,
    /// Seed of the random states.
    pub seed: u64,
}

/// The verdict on an exploration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The check accepts all states.
    Held,
    /// A planted fault was found.
    Caught,
    /// A state was refused, or the check is of no use.
    Refused,
    /// A planted fault was not found.
    NotCaught,
    /// The time was over after a few states.
    ProvesNothing,
}

impl Judgement {
    /// Whether the run is to fail.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Refused | Self::NotCaught | Self::ProvesNothing)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Caught => "caught",
            Self::Refused => "REFUSED",
            Self::NotCaught => "NOT CAUGHT",
            Self::ProvesNothing => "PROVES NOTHING",
        })
    }
}

enum Subject {
    MiniDb(Option<Fault>),
    Host { record: fn() -> Result<Recorded>, check: &'static str },
}

/// One of them.
pub struct Exploration {
    name: String,
    subject: Subject,
    atomicity: Atomicity,
    /// Something was planted that the check must find.
    is_control: bool,
    ignores_flushes: bool,
    /// Random states are explored for as long as there is time.
    has_many_states: bool,
}

/// A workload on this host, its check, and whether a fault is planted.
type HostCase = (&'static str, fn() -> Result<Recorded>, &'static str, bool);

const FILES: [&str; 3] =
    ["check-ext4 && check-files", "check-xfs && check-files", "check-btrfs && check-files"];
const SQLITE: &str = "check-ext4 && check-sqlite db \"select count(*) from t\"";
const POSTGRES: &str = "check-ext4 && check-postgres data \"select count(*) from t\"";
const LMDB: &str = "check-ext4 && check-lmdb db";
const PATTERN: &str = "check-pattern 16";

/// Controls follow what they are a control of.
const HOST_CASES: [HostCase; 14] = [
    ("ext4/files", || files(&FileSystem::EXT4), FILES[0], false),
    ("ext4/files/no-barrier", || files(&FileSystem::EXT4.with("-o barrier=0")), FILES[0], true),
    ("xfs/files", || files(&FileSystem::XFS), FILES[1], false),
    ("btrfs/files", || files(&FileSystem::BTRFS), FILES[2], false),
    ("btrfs/files/no-barrier", || files(&FileSystem::BTRFS.with("-o nobarrier")), FILES[2], true),
    ("ext4/sqlite", || sqlite("pragma synchronous=extra;"), SQLITE, false),
    (
        "ext4/sqlite-wal",
        || sqlite("pragma journal_mode=wal; pragma synchronous=full;"),
        SQLITE,
        false,
    ),
    ("ext4/sqlite/no-sync", || sqlite("pragma synchronous=off;"), SQLITE, true),
    ("ext4/postgres", || postgres("-c fsync=on"), POSTGRES, false),
    ("ext4/postgres/no-sync", || postgres("-c fsync=off"), POSTGRES, true),
    ("ext4/lmdb", || lmdb("mdb_load"), LMDB, false),
    // As with MDB_NOSYNC, which the shell commands do not have.
    ("ext4/lmdb/no-sync", || lmdb("eatmydata mdb_load"), LMDB, true),
    ("raw/pattern", || pattern("sync $DEV"), PATTERN, false),
    ("raw/pattern/no-flush", || pattern("true"), PATTERN, true),
];

/// All of them.
#[must_use]
pub fn explorations() -> Vec<Exploration> {
    let mini_db = |name: String, atomicity, fault, ignores_flushes| Exploration {
        name,
        subject: Subject::MiniDb(fault),
        atomicity,
        is_control: fault.is_some() || ignores_flushes,
        ignores_flushes,
        // There are few states of whole blocks.
        has_many_states: atomicity == Atomicity::Sector,
    };
    let sizes =
        [("sector", Atomicity::Sector), ("block", Atomicity::Block), ("request", Atomicity::Whole)];
    let mut all: Vec<_> = sizes
        .into_iter()
        .map(|(size, atomicity)| mini_db(format!("mini_db/{size}"), atomicity, None, false))
        .collect();
    all.extend(Fault::ALL.map(|fault| {
        mini_db(format!("mini_db/sector/{fault:?}"), Atomicity::Sector, Some(fault), false)
    }));
    all.push(mini_db("mini_db/sector/no-flushes".into(), Atomicity::Sector, None, true));
    all.extend(HOST_CASES.map(|(name, record, check, is_control)| Exploration {
        name: name.into(),
        subject: Subject::Host { record, check },
        atomicity: if check == PATTERN { Atomicity::Sector } else { Atomicity::Block },
        is_control,
        ignores_flushes: false,
        has_many_states: true,
    }));
    all
}

impl Exploration {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a fault is planted: it ends when that is found.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.is_control
    }

    /// Records the workload and explores its states. The calling thread and those that it starts
    /// get mounts of their own.
    ///
    /// # Errors
    ///
    /// The workload or the exploration failed, which is no verdict.
    pub fn run(&self, limits: Limits) -> Result<(Judgement, Outcome)> {
        let outcome = match &self.subject {
            Subject::MiniDb(fault) => {
                let folder = TempDir::new_in(fixtures::scratch())?;
                let [base, log] = ["base.img", "disk.log"].map(|name| folder.path().join(name));
                record_in_memory(&base, &log, |disk| mini_db::run(disk, TRANSACTIONS, *fault))?;
                self.explore(&Recording::open(&log, &base)?, &Recovery(*fault), 3, limits)?
            }
            Subject::Host { record, check } => {
                let recorded = record()?;
                let checker = HostChecker::new(CheckOptions {
                    command: OsString::from(check),
                    limit: Duration::from_secs(60),
                    uses_loop: false,
                    threads: JOBS,
                })?;
                let recording = Recording::open(&recorded.log(), &recorded.base())?;
                self.explore(&recording, &checker, 2, limits)?
            }
        };
        Ok((self.judge(&outcome), outcome))
    }

    fn explore(
        &self,
        recording: &Recording,
        checker: &dyn Checker,
        max_lost: usize,
        limits: Limits,
    ) -> Result<Outcome> {
        let without_flushes;
        let recording = if self.ignores_flushes {
            without_flushes = recording.without_flushes()?;
            &without_flushes
        } else {
            recording
        };
        let options = ExploreOptions {
            atomicity: self.atomicity,
            max_lost,
            samples: if self.has_many_states {
                u64::MAX
            } else {
                ExploreOptions::default().samples
            },
            seed: limits.seed,
            jobs: JOBS,
            time: Some(limits.time),
            states: limits.states,
            ..ExploreOptions::default()
        };
        Ok(explore(recording, &options, checker, &AtomicBool::new(false), &|_| {})?)
    }

    fn judge(&self, outcome: &Outcome) -> Judgement {
        let is_refused = !outcome.failures.is_empty() || !outcome.flaky.is_empty();
        match (self.is_control, outcome.end) {
            (true, SearchEnd::Failure) => Judgement::Caught,
            (true, _) => Judgement::NotCaught,
            (false, SearchEnd::Baseline | SearchEnd::Failure) => Judgement::Refused,
            (false, _) if is_refused => Judgement::Refused,
            (false, SearchEnd::Time) if outcome.checks < LEAST_CHECKS => Judgement::ProvesNothing,
            (false, _) => Judgement::Held,
        }
    }
}
