//! Watches the requests that the host keeps, and those that it fails. Its own thread.
//!
//! Reads statistics only, so that no store can hold it up.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use block::{HostErrors, LogLimit};

use super::events::{EventKind, EventLog};
use super::registry::{DiskRegistry, ManagedDisk};

/// Interval between two looks at the statistics.
const PERIOD: Duration = Duration::from_secs(1);
/// A request of this age is reported.
pub(crate) const STALL_AGE: Duration = Duration::from_secs(5);
/// The thread needs little stack.
const STACK_BYTES: usize = 128 << 10;

/// A running watch. Dropping it ends the watch.
pub(crate) struct StallWatch {
    _stop: Sender<()>,
}

impl StallWatch {
    /// Watches all disks of `disks`, also those that are attached later.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(crate) fn start(disks: Arc<DiskRegistry>, events: Arc<EventLog>) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let watcher = DiskWatcher { disks, events, states: HashMap::new() };
        let builder = thread::Builder::new().name("stalls".into()).stack_size(STACK_BYTES);
        builder.spawn(move || watcher.run(&stopped))?;
        Ok(Self { _stop: stop })
    }
}

/// The last request that the host failed, with the error.
pub(crate) fn error_text(errors: &HostErrors) -> String {
    let reason = match errors.errno {
        Some(errno) => io::Error::from_raw_os_error(errno).to_string(),
        None => "no error of a system call".to_owned(),
    };
    format!("{}: {reason}", errors.operation)
}

struct DiskWatcher {
    disks: Arc<DiskRegistry>,
    events: Arc<EventLog>,
    /// By name of the disk.
    states: HashMap<String, DiskState>,
}

/// The state of one disk at the last look.
#[derive(Debug)]
struct DiskState {
    completed: u64,
    /// When a request completed or started while none was in flight.
    progress: Instant,
    reported_errors: u64,
    /// Failing requests must not displace the other events.
    error_limit: LogLimit,
    is_stalled: bool,
    has_lost_writes: bool,
    has_recording_end: bool,
}

impl DiskWatcher {
    fn run(mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            let disks = self.disks.all();
            self.states.retain(|id, _| disks.iter().any(|disk| disk.config.id() == id));
            for disk in disks {
                self.look_at(&disk, Instant::now());
            }
        }
    }

    fn look_at(&mut self, disk: &ManagedDisk, now: Instant) {
        let queues = disk.control.stats();
        let completed = queues.iter().map(|queue| queue.completed()).sum();
        let in_flight: u64 = queues.iter().map(|queue| queue.in_flight.get()).sum();
        let oldest = queues.iter().filter_map(|queue| queue.oldest_age()).max();
        let id = disk.config.id();
        let state = self.states.entry(id.to_owned()).or_insert_with(|| DiskState {
            completed,
            progress: now,
            reported_errors: 0,
            error_limit: LogLimit::default(),
            is_stalled: false,
            has_lost_writes: false,
            has_recording_end: false,
        });
        if completed != state.completed || in_flight == 0 {
            (state.completed, state.progress) = (completed, now);
        }
        let without_progress = now.saturating_duration_since(state.progress);
        let age = without_progress.max(oldest.unwrap_or_default());
        // Requests held for ENOSPC have a warning of their own.
        let status = disk.control.status();
        let is_held = status.enospc_hold.is_some();
        let is_stalled = in_flight > 0 && age >= STALL_AGE && !is_held;
        disk.set_stall(is_stalled.then_some(age));
        if let Some(lost) = status.lost_writes
            && !std::mem::replace(&mut state.has_lost_writes, true)
        {
            let error = io::Error::from_raw_os_error(lost.errno);
            let text = format!("{error}: flushes fail until the disk is reopened");
            self.events.add(EventKind::WritesLost, id, text);
        }
        if let Some(end) = disk.recording().and_then(|recording| recording.status().end)
            && !std::mem::replace(&mut state.has_recording_end, true)
        {
            self.events.add(EventKind::RecordingStopped, id, end.reason);
        }
        let errors = status.host_errors.map_or(0, |errors| errors.requests);
        let new_errors = errors.saturating_sub(state.reported_errors);
        let reports_errors = new_errors > 0 && state.error_limit.check().is_some();
        if reports_errors {
            state.reported_errors = errors;
        }
        let (was_stalled, since) = (state.is_stalled, age.as_secs());
        state.is_stalled = is_stalled;
        if is_stalled && !was_stalled {
            let requests = if in_flight == 1 { "request" } else { "requests" };
            let text = format!("{in_flight} {requests} in flight, the oldest for {since} s");
            tracing::warn!(disk = id, "the host does not answer: {text}");
            self.events.add(EventKind::RequestsStalled, id, text);
        } else if was_stalled && !is_stalled {
            tracing::warn!(disk = id, "the host answers again");
            self.events.add(EventKind::RequestsResumed, id, "the host answers again".to_owned());
        }
        if reports_errors && let Some(last) = status.host_errors {
            let failure = error_text(&last);
            let text = format!(
                "{new_errors} failed on the host, {errors} since the start; the last: {failure}"
            );
            self.events.add(EventKind::HostErrors, id, text);
        }
    }
}
