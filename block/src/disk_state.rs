//! State of an open disk that changes while it is in use, shared by the control thread and all
//! engines.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::clock::Clock;
use crate::discard::{DiscardCounters, IoLoad};
use crate::failure_log::FailureLog;
use crate::host_file::HostFile;
use crate::memory_budget::MemoryBudget;
use crate::range_lock::RangeLock;
use crate::space::{EnospcAccount, SoftLimit};
use crate::sync_latch::SyncLatch;
use crate::{DiskStatus, EngineChoice, Geometry, LogLimit, Named};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct DiskState {
    /// In bytes; grows only.
    capacity: AtomicU64,
    pub(crate) latch: SyncLatch,
    /// Required from the start if guest blocks share blocks of direct I/O.
    pub(crate) range_lock: RangeLock,
    pub(crate) memory: MemoryBudget,
    pub(crate) enospc: EnospcAccount,
    pub(crate) discards: DiscardCounters,
    pub(crate) load: IoLoad,
    pub(crate) failures: FailureLog,
    pub(crate) soft_limit: Option<SoftLimit>,
    pub(crate) clock: Clock,
    /// Ranges that the host is zeroing.
    zeroing: AtomicUsize,
    /// The engine that was made last.
    engine: Mutex<Option<EngineChoice>>,
    /// Queues may restart often, and each restart may fall back.
    fallback_log: LogLimit,
    discard_refusal_logged: AtomicBool,
}

/// An open disk: the file, which does not change, and its state.
#[derive(Debug)]
pub(crate) struct OpenDisk {
    pub(crate) file: HostFile,
    pub(crate) state: DiskState,
}

impl DiskState {
    fn new(file: &HostFile, clock: Clock) -> Self {
        let shared_block = file.limits.shared_block();
        let name = file.name();
        Self {
            capacity: AtomicU64::new(file.limits.geometry.capacity),
            latch: SyncLatch::default(),
            range_lock: RangeLock::new(shared_block.unwrap_or(1), shared_block.is_some()),
            memory: MemoryBudget::new(file.options.copy_memory),
            enospc: EnospcAccount::new(name.clone(), file.path.clone(), file.options.on_enospc),
            discards: DiscardCounters::default(),
            load: IoLoad::default(),
            failures: FailureLog::new(name),
            soft_limit: file.options.soft_limit.map(SoftLimit::new),
            clock,
            zeroing: AtomicUsize::new(0),
            engine: Mutex::default(),
            fallback_log: LogLimit::default(),
            discard_refusal_logged: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Admits requests up to `capacity`, in bytes, from now on.
    pub(crate) fn grow_to(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::AcqRel);
    }

    pub(crate) fn begin_zeroing(&self) {
        self.zeroing.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_zeroing(&self) {
        self.zeroing.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn is_zeroing(&self) -> bool {
        self.zeroing.load(Ordering::Relaxed) > 0
    }
}

impl OpenDisk {
    /// A disk whose deadlines are measured by `clock`.
    pub(crate) fn new(file: HostFile, clock: Clock) -> Self {
        let state = DiskState::new(&file, clock);
        Self { file, state }
    }

    /// See [`crate::Backend::geometry`].
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { capacity: self.state.capacity(), ..self.file.limits.geometry }
    }

    /// See [`crate::Backend::status`].
    pub(crate) fn status(&self) -> DiskStatus {
        let engine = self.state.engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        DiskStatus {
            engine: engine.unwrap_or_else(|| EngineChoice {
                name: self.file.options.engine.name(),
                reason: "configured; the guest has not started the disk yet".into(),
            }),
            lost_writes: self.state.latch.lost_writes(),
            host_errors: self.state.failures.host_errors(),
            enospc_hold: self.state.enospc.held(),
            discards: self.state.discards.read(),
            store: self.file.store.clone(),
            soft_limit: self.state.soft_limit.as_ref().map(SoftLimit::state),
            ephemeral: None,
        }
    }

    /// Records the engine that was made, and logs it if it is another one than before.
    pub(crate) fn record_engine(&self, engine: EngineChoice, is_fallback: bool) {
        let path = self.file.path.display();
        let EngineChoice { name, reason } = engine.clone();
        let mut last = self.state.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if last.replace(engine.clone()) == Some(engine) {
            return;
        }
        drop(last);
        if !is_fallback {
            tracing::info!(%path, engine = name, %reason, "I/O engine selected");
        } else if let Some(suppressed) = self.state.fallback_log.check() {
            tracing::warn!(%path, engine = name, %reason, suppressed, "falling back to the slower I/O engine");
        }
    }

    /// Makes all completed writes durable by `fdatasync`, which blocks.
    ///
    /// # Errors
    ///
    /// The host's error, now or at an earlier flush; acknowledged data is not durable, and may be
    /// lost if the latch is set.
    pub(crate) fn sync_with(&self, fdatasync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.state.latch.check()?;
        fdatasync().inspect_err(|error| {
            if self.file.is_loss_by_flush(error) {
                self.lose_writes(error);
            }
        })
    }

    /// Latches the loss of acknowledged data.
    pub(crate) fn lose_writes(&self, error: &io::Error) {
        if self.state.latch.set(error) {
            tracing::error!(
                path = %self.file.path.display(), %error,
                "write-back failed: acknowledged writes were lost, or may be; flushes fail until the disk is reopened"
            );
        }
    }

    /// Logs once that the host cannot discard.
    pub(crate) fn log_discard_refusal(&self) {
        if !self.state.discard_refusal_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %self.file.path.display(),
                "the host does not support discards here: the guest's discards succeed and free nothing"
            );
        }
    }

    /// Whether submission of a transfer may block now.
    pub(crate) fn submission_blocks_now(&self) -> bool {
        self.file.submission_may_block() && self.state.is_zeroing()
    }
}
