//! Begins and ends the disturbances of a schedule. Runs on the thread that starts the processes.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fixtures::host::Loop;
use fixtures::{Ext4, PATIENCE};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::control::{self, Flood, FloodCounts, RESUME};
use crate::events::Events;
use crate::memory_group::MemoryGroup;
use crate::process::Process;
use crate::program::describe;
use crate::schedule::{Disturbance, Step};
use crate::usage::Usage;

/// The rest of a restart.
enum Restart {
    Exiting,
    Exited,
    /// Started; the number of connections before.
    Connecting(u32),
}

/// How to end an active disturbance.
enum Undo {
    LogStall,
    Flood(Flood),
    Thaw,
    Descriptors { pid: u32, limit: Rlimit, flood: Flood },
    Memory,
    Continue,
    Restart(Restart),
}

struct Active {
    step: Step,
    since: Instant,
    undo: Undo,
}

/// How often a kind of disturbance occurred, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Occurrences {
    pub(crate) count: u32,
    pub(crate) total: Duration,
    pub(crate) skipped: u32,
}

/// The processes and their active disturbances.
pub(crate) struct Disturber {
    pub(crate) processes: Vec<Process>,
    /// Before the store that it is on.
    pub(crate) device: Option<Loop>,
    pub(crate) store: Ext4,
    pub(crate) group: Option<MemoryGroup>,
    pub(crate) occurrences: BTreeMap<Disturbance, Occurrences>,
    pub(crate) flood_counts: Arc<FloodCounts>,
    is_frozen: bool,
    active: Vec<Active>,
}

impl Disturber {
    pub(crate) fn new(processes: Vec<Process>, store: Ext4, device: Loop) -> Self {
        Self {
            processes,
            device: Some(device),
            store,
            group: MemoryGroup::new(),
            occurrences: BTreeMap::new(),
            flood_counts: Arc::default(),
            is_frozen: false,
            active: Vec::new(),
        }
    }

    /// Plays `steps` in their order, each when its time has come and its process is free for it.
    /// Begins none after `deadline`, and returns when all have ended.
    pub(crate) fn play(
        &mut self,
        steps: Vec<Step>,
        deadline: Duration,
        events: &mut Events,
    ) -> Result<()> {
        let mut steps = steps.into_iter().peekable();
        loop {
            let now = events.elapsed();
            let is_over = now >= deadline || steps.peek().is_none();
            if is_over && self.active.is_empty() {
                return Ok(());
            }
            if let Some(step) =
                steps.next_if(|step| !is_over && step.at <= now && self.is_free(step))
            {
                self.begin(step, events)?;
            }
            self.end_due(events)?;
            self.check()?;
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs without a new disturbance for `time`.
    pub(crate) fn rest(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.check()?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::check)
    }

    fn is_free(&self, step: &Step) -> bool {
        let kind = step.disturbance;
        match (kind.is_global(), kind.is_exclusive()) {
            (true, _) => !self.active.iter().any(|one| one.step.disturbance.is_global()),
            (_, true) => self.processes[step.process].exclusive.is_none(),
            _ => !self
                .active
                .iter()
                .any(|one| one.step.disturbance == kind && one.step.process == step.process),
        }
    }

    fn begin(&mut self, mut step: Step, events: &mut Events) -> Result<()> {
        let kind = step.disturbance;
        let process = if kind.is_global() { "all" } else { self.processes[step.process].name };
        events.add(&format!("{process:8} {kind} for {} ms", step.lasts.as_millis()));
        if kind.is_exclusive() && !kind.is_global() {
            self.processes[step.process].exclusive = Some(kind);
        }
        match self.start(&mut step)? {
            Some(undo) => self.active.push(Active { step, since: Instant::now(), undo }),
            None => self.occurrences.entry(kind).or_default().skipped += 1,
        }
        Ok(())
    }

    /// Begins it; none if this host does not offer it.
    fn start(&mut self, step: &mut Step) -> Result<Option<Undo>> {
        let process = &self.processes[step.process];
        let flood = |step: &mut Step| {
            Flood::start(&process.control_socket(), &mut step.random, &self.flood_counts)
        };
        Ok(Some(match step.disturbance {
            Disturbance::LogStall => {
                process.program.stall_log(true);
                Undo::LogStall
            }
            Disturbance::ControlFlood => Undo::Flood(flood(step)),
            Disturbance::Freeze => {
                self.stall(|process| process.on_store, true);
                self.store.freeze();
                self.is_frozen = true;
                Undo::Thaw
            }
            Disturbance::Descriptors => {
                let pid = process.program.pid().unwrap_or_default();
                let open = Usage::of(pid)?.descriptors as u64;
                let limit = getrlimit(Resource::Nofile);
                let short = Rlimit { current: Some(open), maximum: limit.maximum };
                let limit = prlimit(raw(pid), Resource::Nofile, short)?;
                Undo::Descriptors { pid, limit, flood: flood(step) }
            }
            Disturbance::Memory => {
                let Some(group) = &self.group else { return Ok(None) };
                // A process that is being restarted has not allocated its memory yet.
                let anonymous = self.processes.iter().map(Process::anonymous_kib).sum();
                self.stall(|_| true, true);
                // EBUSY: too little could be reclaimed at once.
                let _ = group.squeeze(anonymous);
                Undo::Memory
            }
            Disturbance::Stop => {
                process.stalls.begin();
                process.program.signal(Signal::STOP)?;
                Undo::Continue
            }
            Disturbance::Kill | Disturbance::Terminate => {
                process.stalls.begin();
                let is_kill = step.disturbance == Disturbance::Kill;
                process.program.signal(if is_kill { Signal::KILL } else { Signal::TERM })?;
                Undo::Restart(Restart::Exiting)
            }
        }))
    }

    fn stall(&self, which: impl Fn(&Process) -> bool, begins: bool) {
        for process in self.processes.iter().filter(|process| which(process)) {
            if begins { process.stalls.begin() } else { process.stalls.end() }
        }
    }

    fn end_due(&mut self, events: &mut Events) -> Result<()> {
        let mut kept = Vec::new();
        for mut active in std::mem::take(&mut self.active) {
            let age = active.since.elapsed();
            if age < active.step.lasts || !self.end(&mut active)? {
                ensure!(
                    age < active.step.lasts + PATIENCE,
                    "{}: {} does not end",
                    self.processes[active.step.process].name,
                    active.step.disturbance
                );
                kept.push(active);
                continue;
            }
            let (kind, took) = (active.step.disturbance, active.since.elapsed());
            let of_kind = self.occurrences.entry(kind).or_default();
            of_kind.count += 1;
            of_kind.total += took;
            let late = took.saturating_sub(active.step.lasts);
            if late > Duration::from_secs(1) {
                events.add(&format!("         {kind} took {late:.1?} longer"));
            }
            if kind.is_exclusive() && !kind.is_global() {
                self.processes[active.step.process].exclusive = None;
            }
        }
        self.active = kept;
        Ok(())
    }

    /// Ends a disturbance; returns whether it has ended, to be called again otherwise.
    fn end(&mut self, active: &mut Active) -> Result<bool> {
        let process = &mut self.processes[active.step.process];
        match &mut active.undo {
            Undo::LogStall => process.program.stall_log(false),
            Undo::Flood(flood) => {
                flood.stop();
                // A pause of which the resume timed out; checked again at the end of the run.
                let socket = process.control_socket();
                let _ = control::send(&socket, RESUME, Duration::from_millis(200));
            }
            Undo::Thaw => {
                self.store.thaw();
                self.is_frozen = false;
                self.stall(|process| process.on_store, false);
            }
            Undo::Descriptors { pid, limit, flood } => {
                flood.stop();
                prlimit(raw(*pid), Resource::Nofile, *limit)?;
            }
            Undo::Memory => {
                self.group.iter().for_each(MemoryGroup::release);
                self.stall(|_| true, false);
            }
            Undo::Continue => {
                process.program.signal(Signal::CONT)?;
                process.stalls.end();
            }
            Undo::Restart(stage) => {
                let is_kill = active.step.disturbance == Disturbance::Kill;
                return restart(process, stage, is_kill, self.is_frozen, self.group.as_ref());
            }
        }
        Ok(true)
    }
}

impl Drop for Disturber {
    /// A failed run: no process can end while the store is frozen.
    fn drop(&mut self) {
        self.store.thaw();
    }
}

/// Advances a restart; returns whether the process serves again.
fn restart(
    process: &mut Process,
    stage: &mut Restart,
    is_kill: bool,
    is_frozen: bool,
    group: Option<&MemoryGroup>,
) -> Result<bool> {
    match stage {
        Restart::Exiting => {
            let Some(status) = process.program.poll_exit()? else { return Ok(false) };
            check_exit(process.name, status, is_kill)?;
            *stage = Restart::Exited;
        }
        // The image of a process is locked until its last I/O has ended, which waits for the thaw.
        Restart::Exited if process.on_store && is_frozen => {}
        Restart::Exited => {
            *stage = Restart::Connecting(process.connections());
            process.start(group)?;
            if let Some(load) = &process.load {
                load.reconnect();
            }
        }
        Restart::Connecting(before) => {
            process.program.check_runs()?;
            if process.serves(*before) {
                process.stalls.end();
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A killed process may have ended by itself before.
fn check_exit(name: &str, status: ExitStatus, is_kill: bool) -> Result<()> {
    match (status.code(), is_kill) {
        (None, true) | (Some(0), false) => Ok(()),
        _ => bail!("{name} ended with {} after its signal", describe(status)),
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
