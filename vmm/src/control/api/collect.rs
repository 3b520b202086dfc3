//! The machine as it is at this moment. Control socket thread; nothing here waits.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use block::{FlushAction, Named, SoftLimitState};
use devices::storage::{KindStats, OperationKind, QueueStats};
use devices::virtio::Address;

use super::latency::Counts;
use super::model::{
    Disk, Engine, Event, Events, Held, Requests, Scsi, SoftLimit, State, Stats, Status, Trimmed,
};
use crate::config::ScsiAddress;
use crate::control::commands::Commander;
use crate::disks::{DiskRegistry, EventLog, EventRecord, Hotplug, ManagedDisk};
use crate::machine::pause_gate::Gate;

/// Everything the control socket may see and do.
pub(crate) struct View {
    /// When the guest started, or the disk was first served.
    pub(crate) started: Instant,
    /// Nothing where a disk is served to another monitor.
    pub(crate) machine: Option<MachineView>,
    pub(crate) disks: Arc<DiskRegistry>,
    pub(crate) events: Arc<EventLog>,
}

/// The machine around the disks.
pub(crate) struct MachineView {
    pub(crate) vcpus: u8,
    pub(crate) memory_bytes: u64,
    /// Closed while the machine is paused.
    pub(crate) gate: Arc<Gate>,
    pub(crate) commander: Commander,
    pub(crate) hotplug: Arc<Hotplug>,
}

impl View {
    pub(super) fn state(&self) -> State {
        let is_paused = self.machine.as_ref().is_some_and(|machine| machine.gate.is_closed());
        if is_paused { State::Paused } else { State::Running }
    }

    pub(super) fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.state(),
            uptime_ms: milliseconds(self.started.elapsed()),
            vcpus: self.machine.as_ref().map(|machine| machine.vcpus),
            memory_bytes: self.machine.as_ref().map(|machine| machine.memory_bytes),
            disks: self.disks.all().iter().map(|disk| disk.status()).collect(),
        }
    }

    pub(super) fn events(&self) -> Events {
        let event = |event: EventRecord| Event {
            number: event.number,
            time_ms: event.time.duration_since(UNIX_EPOCH).map_or(0, milliseconds),
            event: event.kind.name().to_owned(),
            disk: event.disk,
            text: event.text,
        };
        Events { events: self.events.all().into_iter().map(event).collect() }
    }
}

impl ManagedDisk {
    /// Whether flushes are ignored.
    pub(super) fn is_unsafe(&self) -> bool {
        self.config.options.cache.flush_action() == FlushAction::Ignore
    }

    pub(super) fn status(&self) -> Disk {
        let Self { config, control, .. } = self;
        let (geometry, engine) = (control.geometry(), control.status().engine);
        let held = self.held();
        Disk {
            id: config.id().to_owned(),
            path: config.path.display().to_string(),
            scsi: self.scsi(),
            detaching: self.is_detaching(),
            warnings: self.warnings(held.as_ref()),
            size_bytes: geometry.capacity,
            logical_block_bytes: geometry.logical_block,
            physical_block_bytes: geometry.physical_block,
            readonly: config.options.read_only,
            cache: config.options.cache.name().to_owned(),
            write_cache: control.write_cache(),
            lost_writes: control.backend().status().lost_writes,
            held,
            soft_limit: self.soft_limit(),
            trimmed: self.trimmed(),
            engine: Engine { name: engine.name.to_owned(), reason: engine.reason.into_owned() },
            total: stats(control.stats()),
            queues: control
                .stats()
                .iter()
                .map(|queue| stats(std::slice::from_ref(queue)))
                .collect(),
        }
    }

    /// Where it is on a SCSI controller.
    fn scsi(&self) -> Option<Scsi> {
        let ScsiAddress { controller, address: Address { target, lun } } =
            self.config.scsi_address()?;
        Some(Scsi { controller, target, lun })
    }

    /// What waits for space on the host.
    pub(super) fn held(&self) -> Option<Held> {
        self.control.backend().status().enospc_hold.map(|held| held_at(&held, Instant::now()))
    }

    /// The mark on the space of what stores the disk.
    fn soft_limit(&self) -> Option<SoftLimit> {
        let backend = self.control.backend();
        let SoftLimitState { percent, reached } = backend.status().soft_limit?;
        let space = backend.backing_space().ok().flatten();
        Some(SoftLimit {
            percent,
            reached,
            used_bytes: space.map(|space| space.used),
            available_bytes: space.map(|space| space.available),
        })
    }

    /// What became of what the guest discarded.
    pub(super) fn trimmed(&self) -> Trimmed {
        let block::DiscardStats { requested: asked, merged: gathered, freed, skipped } =
            self.control.backend().status().discards;
        Trimmed {
            asked_bytes: asked,
            gathered_bytes: gathered,
            freed_bytes: freed,
            skipped_bytes: skipped,
        }
    }

    fn warnings(&self, held: Option<&Held>) -> Vec<String> {
        let cache = self.config.options.cache;
        let mut warnings = Vec::new();
        if self.is_detaching() {
            let in_flight = stats(self.control.stats()).in_flight;
            warnings.push(format!(
                "it is being detached: {} in flight; then it is flushed, and its image is closed",
                counted(in_flight)
            ));
        }
        if self.is_unsafe() {
            warnings.push(format!(
                "cache mode {cache}: flushes are ignored, and a crash of the host loses data the guest believes safe"
            ));
        }
        if self.control.backend().status().lost_writes {
            let lost = "write-back failed: data the guest believes written may be lost, and flushes fail until \
                        the machine is started anew";
            warnings.push(lost.to_owned());
        }
        if let Some(SoftLimitState { percent, reached: true }) =
            self.control.backend().status().soft_limit
        {
            warnings.push(format!(
                "soft limit: {percent} % of the space it is stored on is used; free some, or its writes will fail"
            ));
        }
        if let Some(Held { requests, error, reason, age_ms, deadline_ms }) = held {
            let (what, age, left) = (counted(*requests), age_ms / 1000, deadline_ms / 1000);
            warnings.push(format!(
                "held for want of space on the host: {what}, for {age} s ({error}: {reason}); unless space is \
                 freed, writes fail from {left} s on from now"
            ));
        }
        warnings
    }
}

fn held_at(held: &block::EnospcHold, now: Instant) -> Held {
    let block::EnospcHold { requests, since, deadline, errno } = *held;
    // Nothing but these two is held.
    let (error, reason) = match errno {
        libc::EDQUOT => ("EDQUOT", "the quota is used up"),
        _ => ("ENOSPC", "no space is left"),
    };
    Held {
        requests: requests.into(),
        error: error.to_owned(),
        reason: reason.to_owned(),
        age_ms: milliseconds(now.saturating_duration_since(since)),
        deadline_ms: milliseconds(deadline.saturating_duration_since(now)),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn counted(requests: u64) -> String {
    if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") }
}

/// The sum over `queues`.
fn stats(queues: &[Arc<QueueStats>]) -> Stats {
    let sum = |figure: fn(&QueueStats) -> u64| queues.iter().map(|queue| figure(queue)).sum();
    let requests = OperationKind::ALL.map(|kind| {
        let of_kind: Vec<_> = queues.iter().map(|queue| queue.kind(kind)).collect();
        (kind.name().to_owned(), requests(&of_kind))
    });
    Stats {
        in_flight: sum(|queue| queue.in_flight.get()),
        rounds: sum(|queue| queue.rounds.get()),
        interrupts: sum(|queue| queue.interrupts.get()),
        yields: sum(|queue| queue.yields.get()),
        poll_ns: queues.iter().map(|queue| queue.poll_ns.get()).max().unwrap_or(0),
        answered: sum(|queue| queue.answered.get()),
        requests: requests.into(),
        wait: Counts::of(queues.iter().map(|queue| &queue.wait)).summary(),
        completion: Counts::of(queues.iter().map(|queue| &queue.completion)).summary(),
    }
}

fn requests(queues: &[&KindStats]) -> Requests {
    let sum = |figure: fn(&KindStats) -> u64| queues.iter().map(|queue| figure(queue)).sum();
    Requests {
        count: sum(|queue| queue.requests.get()),
        bytes: sum(|queue| queue.bytes.get()),
        errors: sum(|queue| queue.errors.get()),
        backend: Counts::of(queues.iter().map(|queue| &queue.backend)).summary(),
    }
}
