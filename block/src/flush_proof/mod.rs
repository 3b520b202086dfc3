//! A proof that flushes arrive: writes in the way of each cache mode, and at each storey below the
//! disk the kernel's own record of the flush: block events, and commits of the ZIL.
//!
//! Control plane only. It writes to a scratch file or range that the caller names, and blocks for
//! as long as the store does.

mod block_trace;
mod scratch;
mod verdict;
mod witness;
mod zil;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{CacheMode, FlushAction, FlushPromise, StoreStack};

pub use self::scratch::{ROUNDS, Scratch, ScratchError};
pub use self::witness::StoreySeen;

use self::block_trace::BlockTrace;
use self::scratch::is_durable;
use self::witness::{Sight, Witness};

/// Longest idle window.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// The flushes of one cache mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeProof {
    /// The cache mode.
    pub mode: CacheMode,
    /// Whether its flushes and durable writes are kept.
    pub promise: FlushPromise,
    /// The evidence, as a clause.
    pub reason: String,
    /// The storey that a flush did not reach in most rounds.
    pub stopped_at: Option<String>,
    /// The flushes and writes at each storey, in the order of [`StoreStack::storeys`]; empty
    /// without evidence.
    pub seen: Vec<StoreySeen>,
}

/// A proof in progress.
#[derive(Debug)]
pub struct FlushProof {
    scratch: Scratch,
    stack: StoreStack,
    witnesses: Vec<Witness>,
    trace: io::Result<BlockTrace>,
    cancelled: Arc<AtomicBool>,
}

impl FlushProof {
    /// Prepares a proof on `scratch`. It ends between two windows once `cancelled` is set.
    ///
    /// # Errors
    ///
    /// The storage below cannot be queried.
    pub fn new(scratch: Scratch, cancelled: Arc<AtomicBool>) -> io::Result<Self> {
        let stack = StoreStack::of(scratch.file())?;
        let witnesses = witness::all(&stack);
        let devices: Vec<_> = witnesses.iter().flat_map(Witness::devices).collect();
        let trace = BlockTrace::start(&devices);
        Ok(Self { scratch, stack, witnesses, trace, cancelled })
    }

    /// The storage below the scratch.
    #[must_use]
    pub fn stack(&self) -> &StoreStack {
        &self.stack
    }

    /// Proves one cache mode. Calls `progress` after each window.
    ///
    /// # Errors
    ///
    /// A write or flush failed, or the proof was cancelled (`Interrupted`).
    pub fn prove(&mut self, mode: CacheMode, mut progress: impl FnMut()) -> io::Result<ModeProof> {
        let without_evidence = |(promise, reason): (FlushPromise, String)| {
            Ok(ModeProof { mode, promise, reason, stopped_at: None, seen: Vec::new() })
        };
        if mode.flush_action() == FlushAction::Ignore {
            let reason = "the mode ignores flushes".to_owned();
            return without_evidence((FlushPromise::NotKept, reason));
        }
        let Self { scratch, stack, witnesses, trace, cancelled } = self;
        let trace = match trace {
            Ok(trace) => trace,
            Err(error) => return without_evidence(verdict::without_trace(stack, error)),
        };
        if let Err(error) = scratch.open_for(mode) {
            let reason = format!("the scratch cannot be opened in this mode: {error}");
            return without_evidence((FlushPromise::Unknown, reason));
        }
        let (mut rounds, mut idle) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            if cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            let start = Instant::now();
            let busy = window(trace, witnesses, mode, || scratch.write_and_flush(mode, round))?;
            progress();
            let length = start.elapsed().min(IDLE_MAX);
            let quiet = window(trace, witnesses, mode, || {
                thread::sleep(length);
                Ok(())
            })?;
            progress();
            match busy.and_then(|busy| Ok((busy, quiet?))) {
                Ok((busy, quiet)) => {
                    rounds.push(busy);
                    idle.push(quiet);
                }
                Err(error) => return without_evidence(verdict::without_trace(stack, &error)),
            }
        }
        let seen = summary(witnesses, &rounds, &idle);
        let (stopped_at, (promise, reason)) = verdict::judge(stack, &rounds, &seen);
        Ok(ModeProof { mode, promise, reason, stopped_at, seen })
    }
}

/// The flushes and writes at each storey during `action`; the inner error is that of the trace.
fn window(
    trace: &BlockTrace,
    witnesses: &[Witness],
    mode: CacheMode,
    action: impl FnOnce() -> io::Result<()>,
) -> io::Result<io::Result<Vec<Sight>>> {
    let commits: Vec<_> = witnesses.iter().map(Witness::commits).collect();
    let started = trace.clear().and_then(|()| trace.record(true));
    action()?;
    let recorded = started.and_then(|()| trace.record(false)).and_then(|()| trace.events());
    Ok(recorded.map(|events| {
        let pairs = witnesses.iter().zip(commits);
        let is_durable = is_durable(mode);
        pairs.map(|(witness, before)| witness.sight(&events, before, is_durable)).collect()
    }))
}

/// The number of windows in which each storey saw flushes and writes.
fn summary(witnesses: &[Witness], rounds: &[Vec<Sight>], idle: &[Vec<Sight>]) -> Vec<StoreySeen> {
    let count = |windows: &[Vec<Sight>], index: usize, test: &dyn Fn(&Sight) -> bool| {
        let matching = windows.iter().filter(|window| window.get(index).is_some_and(test));
        u32::try_from(matching.count()).unwrap_or(u32::MAX)
    };
    let seen = witnesses.iter().enumerate().map(|(index, witness)| StoreySeen {
        is_observed: witness.is_observed(),
        written: count(rounds, index, &|sight| sight.written),
        flushed: count(rounds, index, &|sight| sight.flushed),
        stray: count(idle, index, &|sight| sight.flushed),
        stray_writes: count(idle, index, &|sight| sight.written && !witness.is_dataset()),
    });
    seen.collect()
}
