//! The list of disks, with the configuration and the controls of each. Any thread.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use block::{BackingSpace, LayeredDisk, RecordedDisk, Recording};
use devices::storage::DiskControl;

use super::events::EventLog;
use super::space_watch::SpaceWatch;
use crate::config::DiskConfig;

/// One disk. Holding it keeps the image open.
pub(crate) struct ManagedDisk {
    pub(crate) config: DiskConfig,
    pub(crate) control: DiskControl,
    detaching: AtomicBool,
    /// Age of the oldest request that the host keeps for seconds, in milliseconds; zero if none.
    stalled_ms: AtomicU64,
    /// When the program began to end.
    end: OnceLock<Instant>,
    /// The flush at the end has completed.
    is_flushed: AtomicBool,
    watch: Option<SpaceWatch>,
}

impl ManagedDisk {
    /// An open disk whose soft limit is not watched.
    pub(crate) fn new(config: DiskConfig, control: DiskControl) -> Self {
        Self {
            config,
            control,
            detaching: AtomicBool::new(false),
            stalled_ms: AtomicU64::new(0),
            end: OnceLock::new(),
            is_flushed: AtomicBool::new(false),
            watch: None,
        }
    }

    /// The disk with its soft limit watched, if it has one.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(crate) fn watched(self, events: &Arc<EventLog>) -> io::Result<Self> {
        let watch = SpaceWatch::start(&self.control, Arc::clone(events))?;
        Ok(Self { watch, ..self })
    }

    /// The space of the backing store as last measured, for a disk with a soft limit. Never asks
    /// the host.
    pub(crate) fn backing_space(&self) -> Option<BackingSpace> {
        self.watch.as_ref()?.latest()
    }

    /// Age of the oldest request, if the host keeps it for longer than a few seconds. Measured
    /// every second, while there are requests in flight.
    pub(crate) fn stall(&self) -> Option<Duration> {
        let age = self.stalled_ms.load(Ordering::Relaxed);
        let has_requests = || self.control.stats().iter().any(|queue| queue.in_flight.get() > 0);
        (age > 0 && has_requests()).then(|| Duration::from_millis(age))
    }

    pub(super) fn set_stall(&self, age: Option<Duration>) {
        let age = age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1));
        self.stalled_ms.store(age, Ordering::Relaxed);
    }

    /// The program ends: from now on it waits for the disk.
    pub(crate) fn begin_end(&self) {
        self.end.get_or_init(Instant::now);
    }

    /// The flush at the end has completed.
    pub(crate) fn set_flushed(&self) {
        self.is_flushed.store(true, Ordering::Release);
    }

    /// The disk for which the end of the program waits, if it does.
    pub(crate) fn pending_end(&self) -> Option<PendingEnd> {
        let since = *self.end.get()?;
        let in_flight = self.control.stats().iter().map(|queue| queue.in_flight.get()).sum();
        let is_flushed = self.is_flushed.load(Ordering::Acquire);
        (in_flight > 0 || !is_flushed).then_some(PendingEnd { since, in_flight })
    }

    /// Whether the disk is being detached: the guest no longer finds it.
    pub(crate) fn is_detaching(&self) -> bool {
        self.detaching.load(Ordering::Acquire)
    }

    /// Its layers; `None` for a disk that has none.
    pub(super) fn layers(&self) -> Option<&LayeredDisk> {
        let disk = self.control.backend().as_any();
        let recorded = disk.downcast_ref::<RecordedDisk>();
        recorded.map_or(disk, |recorded| recorded.inner().as_any()).downcast_ref()
    }

    /// Its recording; `None` if it is not recorded.
    pub(crate) fn recording(&self) -> Option<&Arc<Recording>> {
        let disk = self.control.backend().as_any().downcast_ref::<RecordedDisk>();
        disk.map(RecordedDisk::recording)
    }

    /// Whether a frozen layer below it is being merged.
    pub(super) fn is_merging(&self) -> bool {
        self.layers().is_some_and(LayeredDisk::is_merging)
    }

    /// Marks the disk as being detached; false if it already was.
    pub(super) fn begin_detach(&self) -> bool {
        !self.detaching.swap(true, Ordering::AcqRel)
    }

    /// Undoes [`begin_detach`](Self::begin_detach).
    pub(super) fn cancel_detach(&self) {
        self.detaching.store(false, Ordering::Release);
    }
}

/// The state of a disk for which the end of the program waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingEnd {
    /// When the end began.
    pub(crate) since: Instant,
    /// Requests in flight; without any the disk is being flushed.
    pub(crate) in_flight: u64,
}

impl fmt::Display for PendingEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.in_flight {
            0 => write!(f, "being flushed"),
            1 => write!(f, "1 request in flight"),
            count => write!(f, "{count} requests in flight"),
        }
    }
}

/// All disks, including those being detached.
#[derive(Default)]
pub(crate) struct DiskRegistry {
    disks: Mutex<Vec<Arc<ManagedDisk>>>,
}

impl DiskRegistry {
    pub(crate) fn new(disks: impl IntoIterator<Item = ManagedDisk>) -> Self {
        Self { disks: Mutex::new(disks.into_iter().map(Arc::new).collect()) }
    }

    /// All disks, in the order of the configuration and then of attachment.
    pub(crate) fn all(&self) -> Vec<Arc<ManagedDisk>> {
        self.lock().clone()
    }

    /// The disk with this name.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<ManagedDisk>> {
        self.lock().iter().find(|disk| disk.config.id() == id).cloned()
    }

    /// The disks with these names, each once.
    ///
    /// # Errors
    ///
    /// The name that no disk has.
    pub(super) fn named(&self, ids: &[String]) -> Result<Vec<Arc<ManagedDisk>>, String> {
        let mut found: Vec<Arc<ManagedDisk>> = Vec::new();
        for id in ids {
            let disk = self.find(id).ok_or_else(|| id.clone())?;
            if !found.iter().any(|other| Arc::ptr_eq(other, &disk)) {
                found.push(disk);
            }
        }
        Ok(found)
    }

    pub(super) fn insert(&self, disk: Arc<ManagedDisk>) {
        self.lock().push(disk);
    }

    pub(super) fn remove(&self, disk: &Arc<ManagedDisk>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, disk));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<ManagedDisk>>> {
        // The list is consistent between any two changes, so a poisoned lock is usable.
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
