//! The simulated kernel: io_uring rings and the calls in flight.
//!
//! Deterministic; [`Host::step`] advances it. A call is accepted from its ring, its outcome drawn,
//! its sectors transferred one after another (in any order with direct I/O), and completed. A
//! failed write-back loses data and is reported once to each open file description, as Linux does.

mod execute;
mod outcome;
mod process;
mod shared;
mod signals;

pub(crate) use self::shared::SharedHost;
pub(crate) use self::signals::is_ready;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use block::simulation::{EngineDescriptions, RingResult};

use crate::call::{Call, errno};
use crate::entry::{Entry, Opcode};
use crate::medium::Medium;
use crate::plan::Plan;
use crate::trace::Trace;
use fixtures::Random;

/// Whether user data is a request's tag. That of the kick's poll is not.
fn is_tag(user_data: u64) -> bool {
    user_data <= u64::from(u16::MAX)
}

/// One ring and its registered file description.
#[derive(Debug, Default)]
struct Ring {
    submitted: VecDeque<Entry>,
    capacity: usize,
    results: VecDeque<RingResult>,
    /// Completions posted only when the ring is entered.
    deferred: VecDeque<RingResult>,
    /// User data of the poll of the kick, if it is armed.
    poll: Option<u64>,
    /// Timeout of the sleeping engine's wait, in nanoseconds.
    deadline_ns: Option<u64>,
    /// Whether the kick was ever signalled. It stays readable, because nothing reads it.
    kicked: bool,
    /// Write-back errors reported to this file description.
    reported: u64,
    /// The descriptions of its fixed files.
    files: Option<EngineDescriptions>,
    /// The sectors of its file on the medium.
    file: Range<usize>,
    /// Its process has died.
    dead: bool,
    /// Its engine is a thread pool.
    is_pool: bool,
    /// Its engine was dropped.
    is_closed: bool,
    /// The eventfd that the engine polls for its kick, if it is a real one.
    kick: Option<OwnedFd>,
    /// The number of the queue's kick, if `kick` is that.
    queue_kick: Option<RawFd>,
    /// When the first parked request of its engine comes due.
    due: Option<Instant>,
    /// The eventfd that is signalled when a result is posted, and the number of its signals.
    signal: Option<OwnedFd>,
    signals: u64,
}

/// The kernel and its disk.
#[derive(Debug)]
pub(crate) struct Host {
    plan: Plan,
    pub(crate) random: Random,
    pub(crate) medium: Medium,
    rings: Vec<Ring>,
    calls: Vec<Call>,
    /// Write-back errors so far.
    errors: u64,
    /// Those reported to any file description.
    reported_errors: u64,
    /// Write-back errors reported to the control plane's file description.
    reported_to_backend: u64,
    /// Injected failures, without ENOSPC failures of requests that are held for space.
    pub(crate) faults: u64,
    /// Injected ENOSPC failures of requests that are held for space.
    pub(crate) space_faults: u64,
    /// Calls completed after the death of their process.
    pub(crate) orphans_completed: u64,
    /// Calls that discarded or zeroed a range.
    pub(crate) range_calls: u64,
    /// Each call that allocates fails with ENOSPC.
    full: bool,
    pub(crate) now_ns: u64,
    /// Calls are cancelled without effect.
    pub(crate) powered_off: bool,
    /// A wait advances the host instead of returning ETIME.
    pub(crate) block_waits: bool,
    /// The first violation of the kernel's interface by the engine.
    pub(crate) violation: Option<String>,
    trace: Trace,
    /// The kicks of the queues with several disks.
    pub(crate) queue_kicks: Vec<RawFd>,
    /// It completes nothing.
    frozen: bool,
    /// When it last completed nothing.
    frozen_until_ns: Option<u64>,
    /// The ring in which an engine was last put to sleep.
    pub(crate) slept_in: Option<usize>,
    /// The end of the last sleep of an engine with calls in several rings, if it has one.
    pub(crate) slept_until: Option<Option<Instant>>,
}

impl Host {
    pub(crate) fn new(plan: &Plan, random: Random, trace: Trace) -> Self {
        Self {
            plan: plan.clone(),
            random,
            medium: match &plan.chain {
                Some(chain) => Medium::of(chain.medium(plan.first_number())),
                None => Medium::new(plan.sectors, plan.first_number()),
            },
            rings: Vec::new(),
            calls: Vec::new(),
            errors: 0,
            reported_errors: 0,
            reported_to_backend: 0,
            faults: 0,
            space_faults: 0,
            orphans_completed: 0,
            range_calls: 0,
            full: false,
            now_ns: 0,
            powered_off: false,
            block_waits: false,
            violation: None,
            trace,
            queue_kicks: Vec::new(),
            frozen: false,
            frozen_until_ns: None,
            slept_in: None,
            slept_until: None,
        }
    }

    /// Adds a line to the trace.
    pub(crate) fn log(&self, line: impl FnOnce() -> String) {
        self.trace.push(line);
    }

    /// Whether data was lost by a failed write-back.
    pub(crate) fn lost_data(&self) -> bool {
        self.errors > 0
    }

    /// Opens a file of the disk again, that of `level`, and makes a ring for it. Errors reported to
    /// no description so far are reported to it later.
    pub(crate) fn open_ring(
        &mut self,
        depth: u16,
        files: EngineDescriptions,
        level: usize,
    ) -> usize {
        let file = match &self.plan.chain {
            Some(chain) => chain.file(level),
            None => 0..self.plan.sectors,
        };
        let is_pool = self.plan.uses_threads;
        let capacity = (usize::from(depth) + 2).next_power_of_two();
        let kicked = self.random.coin();
        self.rings.push(Ring {
            capacity,
            kicked,
            reported: self.reported_errors,
            files: Some(files),
            file,
            is_pool,
            ..Ring::default()
        });
        self.rings.len() - 1
    }

    /// The most recent ring.
    pub(crate) fn last_ring(&self) -> usize {
        self.rings.len().saturating_sub(1)
    }

    /// The number of rings so far.
    pub(crate) fn rings(&self) -> usize {
        self.rings.len()
    }

    pub(crate) fn close_ring(&mut self, ring: usize) {
        if self.calls.iter().any(|call| call.ring == ring && !call.orphaned) {
            self.violate(|| "an engine is dropped with calls in flight".into());
        }
        let state = &mut self.rings[ring];
        (state.poll, state.deadline_ns, state.is_closed) = (None, None, true);
        (state.kick, state.signal) = (None, None);
        self.close_unused_files(ring);
    }

    fn violate(&mut self, violation: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(violation);
    }

    pub(crate) fn push(&mut self, ring: usize, mut entry: Entry) -> bool {
        let state = &self.rings[ring];
        if entry.total() > 0 {
            entry.at += 512 * state.file.start as u64;
        }
        let same = |user_data| user_data == entry.user_data;
        let duplicate = state.submitted.iter().any(|other| same(other.user_data))
            || self.calls.iter().any(|call| call.ring == ring && same(call.entry.user_data));
        if duplicate {
            self.violate(|| format!("two entries in flight with user data {:#x}", entry.user_data));
        }
        let state = &mut self.rings[ring];
        let room = state.submitted.len() < state.capacity;
        if room {
            state.submitted.push_back(entry);
        }
        room
    }

    pub(crate) fn reject(&mut self, reason: String) {
        self.violate(|| reason);
    }

    pub(crate) fn has_unsubmitted(&self, ring: usize) -> bool {
        !self.rings[ring].submitted.is_empty()
    }

    pub(crate) fn wants_entering(&self, ring: usize) -> bool {
        let ring = &self.rings[ring];
        !ring.submitted.is_empty() || !ring.deferred.is_empty()
    }

    /// Whether a wait on the ring would return.
    pub(crate) fn is_readable(&self, ring: usize) -> bool {
        let ring = &self.rings[ring];
        let has_timed_out = ring.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= self.now_ns);
        !ring.results.is_empty() || !ring.deferred.is_empty() || has_timed_out
    }

    pub(crate) fn next_result(&mut self, ring: usize) -> Option<RingResult> {
        self.rings[ring].results.pop_front()
    }

    /// io_uring_enter. Fails with an errno of a real kernel, or with ETIME where it would sleep.
    pub(crate) fn enter(
        &mut self,
        ring: usize,
        want: usize,
        timeout: Option<Duration>,
    ) -> Result<(), i32> {
        self.rings[ring].deadline_ns = None;
        if !self.powered_off && self.random.chance(self.plan.odds.busy) {
            self.post_deferred(ring);
            return Err(if self.random.coin() { errno::BUSY } else { errno::INTR });
        }
        let waiting = self.rings[ring].submitted.len();
        let partial = waiting > 0 && self.random.chance(self.plan.odds.partial_submit);
        let taken = if partial { self.random.within(1, waiting) } else { waiting };
        for _ in 0..taken {
            if let Some(entry) = self.rings[ring].submitted.pop_front() {
                self.accept(ring, entry);
            }
        }
        self.post_deferred(ring);
        if taken < waiting {
            return Ok(());
        }
        for _ in 0..100_000 {
            if self.rings[ring].results.len() >= want {
                return Ok(());
            }
            if !self.block_waits {
                let timeout_ns = timeout.map(|timeout| u64::try_from(timeout.as_nanos()).unwrap());
                self.slept_in = Some(ring);
                self.rings[ring].deadline_ns =
                    timeout_ns.map(|timeout_ns| self.now_ns + timeout_ns);
                return Err(errno::TIME);
            }
            self.step();
            self.post_deferred(ring);
        }
        self.violate(|| "the engine waits for a completion that never comes".into());
        Err(errno::TIME)
    }

    fn post_deferred(&mut self, ring: usize) {
        let ring = &mut self.rings[ring];
        if !ring.deferred.is_empty() {
            ring.results.append(&mut ring.deferred);
            ring.signal();
        }
    }

    fn post(&mut self, ring: usize, result: RingResult) {
        let state = &mut self.rings[ring];
        // A thread signals only the first of the pool's results, the kernel only the first of those
        // that it defers.
        let is_known = if state.is_pool && is_tag(result.user_data) {
            state.results.iter().chain(&state.deferred).any(|other| is_tag(other.user_data))
        } else {
            self.plan.defers_completions && !state.deferred.is_empty()
        };
        if self.plan.defers_completions {
            state.deferred.push_back(result);
        } else {
            state.results.push_back(result);
        }
        if !is_known {
            state.signal();
        }
    }

    fn accept(&mut self, ring: usize, entry: Entry) {
        if entry.opcode == Opcode::Poll {
            self.rings[ring].poll = Some(entry.user_data);
            if self.rings[ring].is_kicked() {
                self.kick(ring);
            }
            return;
        }
        if !is_tag(entry.user_data) {
            self.violate(|| format!("user data {:#x} is not a tag", entry.user_data));
        }
        if self.plan.keeps_blocks() && matches!(entry.opcode, Opcode::PunchHole | Opcode::Discard) {
            self.violate(|| "a write of zeroes deallocates its blocks without permission".into());
        }
        if self.powered_off || self.rings[ring].dead {
            let result =
                RingResult { user_data: entry.user_data, result: -errno::CANCELED, more: false };
            return self.post(ring, result);
        }
        let outcome = self.draw_outcome(ring, &entry);
        let in_any_order = self.plan.mode.is_direct();
        let call = Call::new(
            ring,
            entry,
            outcome,
            in_any_order,
            self.medium.next_version(),
            &mut self.random,
        );
        self.log(|| format!("  host takes {call}"));
        self.calls.push(call);
    }

    /// Signals the kick.
    pub(crate) fn kick(&mut self, ring: usize) {
        // A worker of several engines reads the queue's kick.
        self.rings[ring].kicked |= self.rings[ring].queue_kick.is_none();
        if let Some(user_data) = self.rings[ring].poll {
            let more = !self.random.chance(self.plan.odds.poll_ends);
            if !more {
                self.rings[ring].poll = None;
            }
            self.post(ring, RingResult { user_data, result: 1, more });
        }
    }

    /// Toggles between a full and a usable file system.
    pub(crate) fn toggle_full(&mut self) {
        self.full = !self.full;
        let full = self.full;
        self.log(|| format!("  host has {} space", if full { "no" } else { "free" }));
    }

    /// The next timeout of an engine.
    pub(crate) fn next_timeout_ns(&self) -> Option<u64> {
        self.rings.iter().filter_map(|ring| ring.deadline_ns).min()
    }

    pub(crate) fn advance_time(&mut self, by_ns: u64) {
        self.now_ns += by_ns;
        if self.frozen {
            self.frozen_until_ns = Some(self.now_ns);
        }
    }

    /// Whether it has a call that it can advance.
    pub(crate) fn has_calls(&self) -> bool {
        !self.calls.is_empty() && !self.frozen
    }
}
