//! Watches the usage of a disk's backing store, and reports when it passes the soft limit.
//!
//! Each disk has its own thread, because a query of a hung file system blocks.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use block::{BackingSpace, Crossing};
use devices::storage::DiskControl;

use super::events::{EventKind, EventLog};
use crate::config::human_size;

/// Interval between two queries.
const PERIOD: Duration = Duration::from_secs(2);
/// The thread needs little stack.
const STACK_BYTES: usize = 128 << 10;

/// A running watch. Dropping it ends the watch.
pub(crate) struct SpaceWatch {
    latest: Arc<LatestSpace>,
    _stop: Sender<()>,
    _thread: JoinHandle<()>,
}

impl SpaceWatch {
    /// Watches a disk; `None` if it has no soft limit.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(crate) fn start(disk: &DiskControl, events: Arc<EventLog>) -> io::Result<Option<Self>> {
        if disk.backend().status().soft_limit.is_none() {
            return Ok(None);
        }
        let latest = Arc::new(LatestSpace::default());
        let written = Arc::clone(&latest);
        let watcher = Watcher { disk: disk.clone(), events, latest: written, is_failing: false };
        let (stop, stopped) = channel();
        let builder = thread::Builder::new().name("space".into()).stack_size(STACK_BYTES);
        // Never joined: it may be blocked in a hung file system. It holds nothing that must be
        // released before the machine ends.
        let thread = builder.spawn(move || watcher.run(&stopped))?;
        Ok(Some(Self { latest, _stop: stop, _thread: thread }))
    }

    /// The space as last measured; `None` before the first measurement and if the last one failed.
    pub(super) fn latest(&self) -> Option<BackingSpace> {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type LatestSpace = Mutex<Option<BackingSpace>>;

/// The thread of one disk.
struct Watcher {
    disk: DiskControl,
    events: Arc<EventLog>,
    latest: Arc<LatestSpace>,
    /// The last query failed. Only the first failure in a row is logged.
    is_failing: bool,
}

impl Watcher {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            self.query();
            if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn query(&mut self) {
        let checked = self.disk.check_soft_limit();
        let space = self.disk.backend().backing_space().ok().flatten();
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = space;
        let crossing = match checked {
            Ok(crossing) => crossing,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let disk = self.disk.name();
                    tracing::warn!(disk, %error, "cannot query the free space of the disk's store");
                }
                return;
            }
        };
        self.is_failing = false;
        if let Some(crossing) = crossing {
            self.report(crossing, space);
        }
    }

    fn report(&self, crossing: Crossing, space: Option<BackingSpace>) {
        let disk = self.disk.name();
        let percent = self.disk.status().soft_limit.map_or(0, |limit| limit.percent);
        let available = space.map(|space| human_size(space.available));
        let available = available.unwrap_or_else(|| "an unknown amount".to_owned());
        let (kind, text) = match crossing {
            Crossing::Reached => {
                let text = format!(
                    "{percent} % of the space of its backing store is used; {available} is \
                     available"
                );
                tracing::warn!(disk, "soft limit reached: {text}");
                (EventKind::SoftLimitReached, text)
            }
            Crossing::Receded => {
                let text = format!(
                    "less than {percent} % of the space of its backing store is used; \
                     {available} is available"
                );
                tracing::info!(disk, "soft limit receded: {text}");
                (EventKind::SoftLimitReceded, text)
            }
        };
        self.events.add(kind, disk, text);
    }
}
