//! The state of the machine at one moment. Control socket thread; nothing here waits.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use block::{
    DiskStatus, EphemeralPlace, EphemeralState, FlushAction, FlushPromise, LostWrites, Named,
    RecordStatus, SoftLimitState,
};
use devices::storage::{KindStats, OperationKind, QueueStats};
use devices::virtio::Address;

use super::latency::Counts;
use super::model::{
    Discards, Disk, Engine, EnospcHold, Ephemeral, Event, Events, HostErrors, Record, Requests,
    RunState, Scsi, SoftLimit, StableCopies, Stats, Status,
};
use crate::config::{ScsiAddress, human_size};
use crate::control::CommandSender;
use crate::disks::{
    Commits, DiskRegistry, EventLog, EventRecord, Hotplug, ManagedDisk, error_text,
};
use crate::machine::PauseGate;
use crate::store_warning::store_warnings;

/// Everything that the control socket may read and change.
pub(crate) struct View {
    /// When the guest started, or the disk was first served.
    pub(crate) started: Instant,
    /// `None` where a disk is served to another monitor.
    pub(crate) machine: Option<MachineView>,
    pub(crate) disks: Arc<DiskRegistry>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) commits: Commits,
}

/// The machine around the disks.
pub(crate) struct MachineView {
    pub(crate) vcpus: u8,
    pub(crate) memory_bytes: u64,
    /// Closed while the machine is paused.
    pub(crate) gate: Arc<PauseGate>,
    pub(crate) commands: CommandSender,
    pub(crate) hotplug: Arc<Hotplug>,
}

impl View {
    pub(super) fn state(&self) -> RunState {
        let is_paused = self.machine.as_ref().is_some_and(|machine| machine.gate.is_closed());
        if is_paused { RunState::Paused } else { RunState::Running }
    }

    /// Requests of all disks in flight.
    pub(super) fn in_flight(&self) -> u64 {
        let disks = self.disks.all();
        let queues = disks.iter().flat_map(|disk| disk.control.stats());
        queues.map(|queue| queue.in_flight.get()).sum()
    }

    pub(super) fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.state(),
            uptime_ms: milliseconds(self.started.elapsed()),
            vcpus: self.machine.as_ref().map(|machine| machine.vcpus),
            memory_bytes: self.machine.as_ref().map(|machine| machine.memory_bytes),
            disks: self.disks.all().iter().map(|disk| DiskSnapshot::of(disk).to_model()).collect(),
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

/// One disk at one moment. Every field of an answer comes from one `DiskStatus`.
pub(super) struct DiskSnapshot<'d> {
    pub(super) disk: &'d ManagedDisk,
    pub(super) status: DiskStatus,
    time: Instant,
}

impl<'d> DiskSnapshot<'d> {
    pub(super) fn of(disk: &'d ManagedDisk) -> Self {
        Self { disk, status: disk.control.backend().status(), time: Instant::now() }
    }

    /// Whether flushes are ignored.
    pub(super) fn is_unsafe(&self) -> bool {
        self.disk.config.options.cache.flush_action() == FlushAction::Ignore
    }

    pub(super) fn to_model(&self) -> Disk {
        let ManagedDisk { config, control, .. } = self.disk;
        let geometry = control.geometry();
        let queues = control.stats();
        let engine = &self.status.engine;
        Disk {
            id: config.id().to_owned(),
            path: config.file().display().to_string(),
            scsi: config.scsi_address().map(|scsi| {
                let ScsiAddress { controller, address: Address { target, lun } } = scsi;
                Scsi { controller, target, lun }
            }),
            detaching: self.disk.is_detaching(),
            warnings: self.warnings(),
            size_bytes: geometry.capacity,
            logical_block_bytes: geometry.logical_block,
            physical_block_bytes: geometry.physical_block,
            readonly: config.options.read_only,
            cache: config.options.cache.name().to_owned(),
            write_cache: control.write_cache(),
            lost_writes: self.status.lost_writes.is_some(),
            stable_copies: self.stable_copies(),
            flushes: self.flush_promise().to_owned(),
            host_errors: self.host_errors(),
            enospc_hold: self.enospc_hold(),
            soft_limit: self.soft_limit(),
            ephemeral: self.ephemeral(),
            record: self.record(),
            discards: self.discards(),
            engine: Engine { name: engine.name.to_owned(), reason: engine.reason.to_string() },
            total: stats(queues),
            queues: queues.iter().map(|queue| stats(std::slice::from_ref(queue))).collect(),
        }
    }

    /// Requests that the host has failed.
    pub(super) fn host_errors(&self) -> Option<HostErrors> {
        let block::HostErrors { requests, operation, errno, last } = self.status.host_errors?;
        Some(HostErrors {
            requests,
            operation: operation.to_owned(),
            errno,
            age_ms: milliseconds(self.time.saturating_duration_since(last)),
        })
    }

    /// Requests parked on ENOSPC or EDQUOT.
    pub(super) fn enospc_hold(&self) -> Option<EnospcHold> {
        let block::EnospcHold { requests, since, deadline, errno } = self.status.enospc_hold?;
        // No other error is held.
        let (error, reason) = match errno {
            libc::EDQUOT => ("EDQUOT", "the quota is exceeded"),
            _ => ("ENOSPC", "no space left"),
        };
        Some(EnospcHold {
            requests: requests.into(),
            error: error.to_owned(),
            reason: reason.to_owned(),
            age_ms: milliseconds(self.time.saturating_duration_since(since)),
            deadline_ms: milliseconds(deadline.saturating_duration_since(self.time)),
        })
    }

    fn soft_limit(&self) -> Option<SoftLimit> {
        let SoftLimitState { percent, reached } = self.status.soft_limit?;
        let space = self.disk.backing_space();
        Some(SoftLimit {
            percent,
            reached,
            used_bytes: space.map(|space| space.used),
            available_bytes: space.map(|space| space.available),
        })
    }

    fn ephemeral(&self) -> Option<Ephemeral> {
        let EphemeralState { used, limit, refused } = self.status.ephemeral?;
        let folder = match &self.disk.config.ephemeral.as_ref()?.place {
            EphemeralPlace::Memory => None,
            EphemeralPlace::Folder(folder) => Some(folder.display().to_string()),
        };
        Some(Ephemeral { folder, used_bytes: used, limit_bytes: limit, refused })
    }

    /// The recording of the disk.
    pub(super) fn record(&self) -> Option<Record> {
        let RecordStatus { path, bytes, entries, end } = self.disk.recording()?.status();
        Some(Record {
            path: path.display().to_string(),
            bytes,
            entries,
            failed: end.as_ref().is_some_and(|end| end.is_failure),
            end: end.map(|end| end.reason),
        })
    }

    pub(super) fn discards(&self) -> Discards {
        let block::DiscardStats { requested, merged, freed, skipped } = self.status.discards;
        Discards {
            requested_bytes: requested,
            merged_bytes: merged,
            freed_bytes: freed,
            skipped_bytes: skipped,
        }
    }

    fn stable_copies(&self) -> StableCopies {
        let block::StableCopies { writes, reads } = self.status.store.copied.clone();
        StableCopies { reads, writes }
    }

    /// Whether the storage keeps flushed data, as far as that shows without a write.
    pub(super) fn flush_promise(&self) -> &'static str {
        match self.status.store.flush_promise() {
            FlushPromise::Kept => "kept",
            FlushPromise::Unknown => "unknown",
            FlushPromise::NotKept => "not_kept",
        }
    }

    fn lost_writes(&self, LostWrites { time, errno }: LostWrites) -> String {
        let age = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
        let reopen = match self.disk.config.scsi_address() {
            Some(_) => "detach and attach it, or restart the machine",
            None => "restart the machine",
        };
        let error = io::Error::from_raw_os_error(errno);
        format!(
            "write-back failed {age} s ago ({error}): writes that the guest believes written were \
             lost, or may be, and flushes fail until the disk is reopened: make sure of the cause, \
             {reopen}, and check the guest's file systems or restore them"
        )
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.disk.is_detaching() {
            let in_flight = requests_text(stats(self.disk.control.stats()).in_flight);
            warnings.push(format!(
                "being detached: {in_flight} in flight; it is flushed and its image is closed when \
                 they have completed"
            ));
        }
        let queues = self.disk.control.stats();
        if let Some(age) = self.disk.stall() {
            let in_flight = requests_text(stats(queues).in_flight);
            warnings.push(format!(
                "the host does not answer: {in_flight} in flight, the oldest for {} s",
                age.as_secs()
            ));
        }
        if let (Some(errors), Some(shown)) = (&self.status.host_errors, self.host_errors()) {
            warnings.push(format!(
                "{} failed on the host, the last {} s ago ({})",
                requests_text(shown.requests),
                shown.age_ms / 1000,
                error_text(errors)
            ));
        }
        if let Some(pending) = self.disk.pending_end() {
            let age = self.time.saturating_duration_since(pending.since).as_secs();
            warnings.push(format!("the program has been waiting for {age} s to end: {pending}"));
        }
        if let Some(Record { end: Some(reason), failed: true, .. }) = self.record() {
            warnings.push(format!("it is not recorded any more: {reason}"));
        }
        warnings.extend(self.status.ephemeral.as_ref().and_then(refused_changes));
        if self.is_unsafe() && self.disk.config.ephemeral.is_none() {
            let cache = self.disk.config.options.cache;
            warnings.push(format!(
                "cache mode {cache}: flushes are ignored, and a host crash loses data that the \
                 guest has flushed"
            ));
        }
        let store = store_warnings(&self.status.store, self.disk.config.options.cache);
        warnings.extend(store.into_iter().map(|warning| warning.problem));
        if let Some(lost) = self.status.lost_writes {
            warnings.push(self.lost_writes(lost));
        }
        if let Some(SoftLimitState { percent, reached: true }) = self.status.soft_limit {
            warnings.push(format!(
                "soft limit: {percent} % of the space of its backing store is used; free some, or \
                 writes will fail"
            ));
        }
        if let Some(hold) = self.enospc_hold() {
            let EnospcHold { requests, error, reason, age_ms, deadline_ms } = hold;
            let (requests, age, left) =
                (requests_text(requests), age_ms / 1000, deadline_ms / 1000);
            warnings.push(format!(
                "{requests} held for {age} s ({error}: {reason}); unless space is freed, they \
                 start to fail in {left} s"
            ));
        }
        warnings
    }
}

/// The warning of an ephemeral disk that has refused writes.
fn refused_changes(changes: &EphemeralState) -> Option<String> {
    let limit = human_size(changes.limit.filter(|_| changes.refused > 0)?);
    Some(format!("writes have failed: its changes would exceed ephemeral_limit, {limit}"))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn requests_text(requests: u64) -> String {
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
