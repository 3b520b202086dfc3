//! The engines of one request queue: one for each disk that the queue has I/O for, made for its
//! first request.
//!
//! With one engine the worker sleeps in the engine, which also watches the kick: one system call
//! for everything. With several it polls the kick and the descriptors of all engines. Used on the
//! worker's thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ::block::{Completion, EngineSetup, IoEngine, LogLimit, MemoryRegion, OpenError, Request};
use rustix::event::{PollFd, PollFlags};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::controller::Controller;
use super::disk::AttachedDisk;
use super::queries::{QueueQueries, UnitQuery};
use super::sleep::{HostSleep, Sleep};
use crate::event;
use crate::storage::Engines;

/// Bounds of a sleep with parked requests, for which no descriptor signals.
const MIN_PARKED_SLEEP: Duration = Duration::from_millis(1);
const MAX_PARKED_SLEEP: Duration = Duration::from_millis(100);

/// Error of a request whose disk was detached before it had an engine.
pub(super) const DETACHED: i32 = libc::ENODEV;

/// The engines of a queue. With several the worker sleeps by `S`.
pub(super) struct UnitEngines<S = HostSleep> {
    // Dropped first: engines use the fields below.
    engines: Vec<UnitEngine>,
    queries: QueueQueries,
    /// Index in `engines` by number of the disk.
    indices: Vec<Option<usize>>,
    /// Whether `engines` has some of detached disks.
    has_detached: bool,
    /// Whether the only engine left does not watch the kick and is to be replaced.
    must_rewatch: bool,
    /// Number of submits, modulo 256.
    submits: u8,
    /// Requests for which no engine could be made.
    refused: Vec<Completion>,
    completed: Vec<Completion>,
    controller: Arc<Controller>,
    /// Version of the disk map at the last release.
    version: u64,
    depth: u16,
    memory: Vec<MemoryRegion>,
    kick: Arc<EventFd>,
    /// Bounds the log of engines that could not be made.
    no_engine: LogLimit,
    sleep: S,
}

struct UnitEngine {
    /// Number of the disk.
    number: u16,
    engine: Box<dyn IoEngine>,
    in_flight: usize,
    /// Whether the engine was woken and must be reaped.
    signalled: bool,
    /// Whether the engine watches the queue's kick.
    watches_kick: bool,
    /// The kick of an engine that does not watch the queue's; other engines of the disk signal it.
    _own_kick: Option<EventFd>,
    /// Keeps the disk in use.
    _disk: Arc<AttachedDisk>,
}

impl UnitEngine {
    /// Clears the readiness of an engine that is reaped next. Cleared before the reap, so that no
    /// later completion is missed. The submit posts completions that only woke the engine: nothing
    /// else does for an idle engine, and no later one would wake it.
    fn wake(&mut self) -> io::Result<()> {
        self.engine.clear_poll_fd();
        self.signalled = true;
        (*self.engine).submit()
    }
}

impl<S: Sleep> UnitEngines<S> {
    pub(super) fn new(
        controller: Arc<Controller>,
        setup: &EngineSetup<'_>,
        kick: Arc<EventFd>,
        sleep: S,
    ) -> Self {
        let EngineSetup { depth, memory, .. } = *setup;
        Self {
            engines: Vec::new(),
            queries: QueueQueries::default(),
            indices: Vec::new(),
            has_detached: false,
            must_rewatch: false,
            submits: 0,
            refused: Vec::new(),
            completed: Vec::with_capacity(usize::from(depth)),
            version: controller.version(),
            controller,
            depth,
            memory: memory.to_vec(),
            kick,
            no_engine: LogLimit::default(),
            sleep,
        }
    }

    fn index(&self, number: u16) -> Option<usize> {
        *self.indices.get(usize::from(number))?
    }

    /// Makes and adds the engine of a disk. Returns its index.
    #[cold]
    fn add(&mut self, number: u16) -> Result<usize, OpenError> {
        let watches_kick = self.engines.is_empty();
        let unit = self.make(number, watches_kick)?;
        self.engines.push(unit);
        self.must_rewatch = false;
        self.index_all();
        Ok(self.engines.len() - 1)
    }

    fn make(&self, number: u16, watches_kick: bool) -> Result<UnitEngine, OpenError> {
        let refused = |what| move |source| OpenError::Host { path: "/".into(), what, source };
        let detached = || io::Error::from_raw_os_error(DETACHED);
        let disks = self.controller.map();
        let disk = disks.disk(number).ok_or_else(detached).map_err(refused("find the disk"))?;
        let own_kick = if watches_kick {
            None
        } else {
            Some(EventFd::new(EFD_NONBLOCK).map_err(refused("create an event"))?)
        };
        let kick = event::as_fd(own_kick.as_ref().unwrap_or(&self.kick));
        let setup = EngineSetup { depth: self.depth, memory: &self.memory, kick };
        let engine = disk.unit.backend().engine(&setup)?;
        let (_own_kick, _disk, signalled) = (own_kick, Arc::clone(disk), true);
        Ok(UnitEngine { number, engine, in_flight: 0, signalled, watches_kick, _own_kick, _disk })
    }

    fn index_all(&mut self) {
        self.indices.clear();
        for (index, unit) in self.engines.iter().enumerate() {
            let number = usize::from(unit.number);
            if self.indices.len() <= number {
                self.indices.resize(number + 1, None);
            }
            if let Some(entry) = self.indices.get_mut(number) {
                *entry = Some(index);
            }
        }
    }

    /// Releases the engines of detached disks that have no requests in flight.
    #[inline]
    fn release_detached(&mut self) {
        if self.has_detached || self.controller.version() != self.version {
            self.release();
        }
        if self.must_rewatch {
            self.rewatch_kick();
        }
    }

    #[cold]
    fn release(&mut self) {
        self.version = self.controller.version();
        let disks = self.controller.map();
        let is_detached = |unit: &UnitEngine| disks.disk(unit.number).is_none();
        self.engines.retain(|unit| unit.in_flight > 0 || !is_detached(unit));
        self.has_detached = self.engines.iter().any(is_detached);
        self.must_rewatch = matches!(self.engines.as_slice(), [only] if !only.watches_kick);
        self.index_all();
    }

    /// Replaces the only engine, once it is idle, by one that watches the kick, so that the worker
    /// sleeps in it. If the host refuses, the old engine stays.
    #[cold]
    fn rewatch_kick(&mut self) {
        let [only] = self.engines.as_slice() else { return };
        if only.in_flight > 0 {
            return;
        }
        self.must_rewatch = false;
        if let Ok(unit) = self.make(only.number, true)
            && let [only] = self.engines.as_mut_slice()
        {
            *only = unit;
        }
    }

    /// How long to sleep until the first engine is due; `None` if none is, and none has parked
    /// requests.
    fn parked_sleep(&self) -> Option<Duration> {
        let has_due = |unit: &&UnitEngine| unit.engine.parked() > 0 || unit.engine.due().is_some();
        let mut parked = self.engines.iter().filter(has_due).peekable();
        parked.peek()?;
        let due = parked.filter_map(|unit| (*unit.engine).due()).min();
        let left =
            due.map_or(MAX_PARKED_SLEEP, |due| due.saturating_duration_since(self.sleep.now()));
        Some(left.clamp(MIN_PARKED_SLEEP, MAX_PARKED_SLEEP))
    }

    /// Sleeps until the kick or an engine is signalled, or a parked request comes due.
    fn sleep(&mut self) -> io::Result<()> {
        let parked_sleep = self.parked_sleep();
        let has_parked = parked_sleep.is_some();
        let mut fds = Vec::with_capacity(1 + self.engines.len());
        fds.push(poll_in(event::as_fd(&self.kick)));
        for unit in &mut self.engines {
            fds.push(poll_in(unit.engine.poll_fd()?));
        }
        self.sleep.poll(&mut fds, parked_sleep)?;
        let woken: Vec<bool> = fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let _ = self.kick.read();
        for (unit, woken) in self.engines.iter_mut().zip(woken) {
            if woken || has_parked {
                unit.wake()?;
            }
        }
        Ok(())
    }

    /// Completes a request for which no engine could be made.
    #[cold]
    fn refuse(&mut self, tag: u16, error: &OpenError) {
        let errno = match error {
            OpenError::Host { source, .. } if source.raw_os_error() == Some(DETACHED) => DETACHED,
            _ => libc::EIO,
        };
        if errno != DETACHED
            && let Some(suppressed) = self.no_engine.check()
        {
            let name = &self.controller.name;
            tracing::error!(
                target: "virtio-scsi", suppressed,
                "{name}: cannot make the engine of a disk: {error}"
            );
        }
        let result = Err(io::Error::from_raw_os_error(errno));
        self.refused.push(Completion { tag, result });
    }
}

fn poll_in(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

impl<S: Sleep> Engines for UnitEngines<S> {
    type Query = UnitQuery;

    const HAS_QUERIES: bool = true;

    fn query(&mut self, tag: u16, query: UnitQuery) {
        self.queries.start(tag, query);
    }

    fn take_answered(&mut self) -> Vec<u16> {
        self.queries.take_answered()
    }

    fn push(&mut self, unit: u16, request: Request<'_>) {
        let index = match self.index(unit) {
            Some(index) => Ok(index),
            None => self.add(unit),
        };
        match index {
            Ok(index) => {
                if let Some(unit) = self.engines.get_mut(index) {
                    unit.in_flight += 1;
                    (*unit.engine).push(request);
                }
            }
            Err(error) => self.refuse(request.tag, &error),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        // Other engines of its disk may signal an idle engine. The worker of a busy driver does not
        // sleep and would miss that, so all engines are checked at times.
        self.submits = self.submits.wrapping_add(1);
        let all = self.submits == 0;
        let mut checked = self.engines.iter_mut().filter(|unit| unit.in_flight > 0 || all);
        checked.try_for_each(|unit| {
            unit.signalled |= all;
            (*unit.engine).submit()
        })
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        // Here as well as in `wait`, which the worker of a busy driver does not call.
        self.release_detached();
        completed.append(&mut self.refused);
        for unit in &mut self.engines {
            if unit.in_flight > 0 || unit.signalled {
                unit.signalled = false;
                (*unit.engine).reap(&mut self.completed);
                unit.in_flight = unit.in_flight.saturating_sub(self.completed.len());
                completed.append(&mut self.completed);
            }
        }
    }

    fn parked(&self) -> usize {
        self.engines.iter().map(|unit| (*unit.engine).parked()).sum()
    }

    fn cancel(&mut self, unit: u16, tag: u16) -> bool {
        if self.queries.cancel(tag) {
            return true;
        }
        let index = self.index(unit);
        let unit = index.and_then(|index| self.engines.get_mut(index));
        unit.is_some_and(|unit| (*unit.engine).cancel(tag))
    }

    fn wait(&mut self) -> io::Result<()> {
        self.release_detached();
        if !self.refused.is_empty() || self.queries.has_answered() {
            return Ok(());
        }
        if let [only] = self.engines.as_mut_slice()
            && only.watches_kick
        {
            only.signalled = true;
            return (*only.engine).wait().map(drop);
        }
        self.submit()?;
        if self.engines.iter().any(|unit| unit.engine.is_ready()) {
            let mut ready = self.engines.iter_mut().filter(|unit| unit.engine.is_ready());
            return ready.try_for_each(UnitEngine::wake);
        }
        self.sleep()
    }
}

#[cfg(test)]
mod tests {
    use ::block::{ByteOffset, CacheMode, DiskOptions, Durability, Operation, RawFile, Segments};
    use tempfile::NamedTempFile;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::scsi::Identity;
    use crate::virtio::scsi::address::Address;
    use crate::{GuestMap, GuestMemory};

    const DISK: Address = Address { target: 0, lun: 0 };

    fn attach(controller: &Arc<Controller>, lun: u16) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack)).unwrap();
        let identity = Identity::new("disk", "/");
        controller.attach(Address { target: 0, lun }, "disk", identity, Arc::new(disk)).unwrap();
        file
    }

    fn engines(
        controller: &Arc<Controller>,
        setup: &EngineSetup<'_>,
        kick: &Arc<EventFd>,
    ) -> UnitEngines {
        UnitEngines::new(Arc::clone(controller), setup, Arc::clone(kick), HostSleep)
    }

    fn flush(engines: &mut UnitEngines, number: u16) {
        let (op, mut segments) = (Operation::Flush, Segments::new());
        engines.push(number, Request { tag: number, op, segments: &mut segments });
    }

    /// Waits for the next completion.
    fn complete(engines: &mut UnitEngines) -> Completion {
        let mut completed = Vec::new();
        while completed.is_empty() {
            engines.wait().unwrap();
            engines.reap(&mut completed);
        }
        completed.remove(0)
    }

    /// A worker that sleeps in its only engine makes one system call, a poll of several makes
    /// three.
    #[test]
    fn the_last_engine_left_watches_the_kick_again() {
        let controller = Arc::new(Controller::new("scsi", 1).unwrap());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
        let mut engines = engines(&controller, &setup, &kick);
        let _files = [attach(&controller, 0), attach(&controller, 1)];
        for number in 0..2 {
            flush(&mut engines, number);
            assert_eq!(complete(&mut engines).tag, number);
        }
        let watches = |engines: &UnitEngines| -> Vec<_> {
            engines.engines.iter().map(|unit| (unit.number, unit.watches_kick)).collect()
        };
        assert_eq!(watches(&engines), [(0, true), (1, false)]);
        flush(&mut engines, 1);
        let detached = controller.detach(DISK).unwrap();
        engines.release_detached();
        assert_eq!(watches(&engines), [(1, false)], "it has a request in flight");
        assert!(complete(&mut engines).result.is_ok());
        engines.release_detached();
        assert_eq!(watches(&engines), [(1, true)]);
        // A kick wakes the engine, and so does a completion.
        kick.write(1).unwrap();
        engines.wait().unwrap();
        flush(&mut engines, 1);
        assert!(complete(&mut engines).result.is_ok());
        detached.drain().unwrap();
    }

    /// Compare-and-write waits for every engine of its disk, including an idle one of a worker that
    /// never sleeps.
    #[test]
    fn an_idle_engine_is_checked_without_a_sleep() {
        let controller = Arc::new(Controller::new("scsi", 2).unwrap());
        let kicks = [(); 2].map(|()| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let _files = [attach(&controller, 0), attach(&controller, 1)];
        let [mut busy, mut other] = kicks.map(|kick| {
            let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
            engines(&controller, &setup, &kick)
        });
        for number in 0..2 {
            flush(&mut busy, number);
            assert_eq!(complete(&mut busy).tag, number);
        }
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let map = GuestMap::new(&memory);
        let mut segments = vec![map.segment(GuestAddress(0), 1024).unwrap()];
        let op = Operation::CompareAndWrite { at: ByteOffset(0), durability: Durability::Volatile };
        other.push(0, Request { tag: 0, op, segments: &mut segments });
        let (mut completed, mut compared) = (Vec::new(), Vec::new());
        for _ in 0..2000 {
            flush(&mut busy, 1);
            while completed.is_empty() {
                busy.submit().unwrap();
                busy.reap(&mut completed);
            }
            completed.clear();
            other.submit().unwrap();
            other.reap(&mut compared);
        }
        assert!(compared.pop().expect("the compare-and-write completed").result.is_ok());
    }

    /// The worker of a driver that is never idle does not sleep.
    #[test]
    fn the_engine_of_a_detached_disk_is_released_without_a_sleep() {
        let controller = Arc::new(Controller::new("scsi", 1).unwrap());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
        let mut engines = engines(&controller, &setup, &kick);
        let _file = attach(&controller, 0);
        let mut completed = Vec::new();
        flush(&mut engines, 0);
        let detached = controller.detach(DISK).unwrap();
        while completed.is_empty() {
            assert_eq!(engines.engines.len(), 1, "it has a request in flight");
            engines.submit().unwrap();
            engines.reap(&mut completed);
        }
        engines.reap(&mut completed);
        assert_eq!((engines.engines.len(), completed.len()), (0, 1));
        detached.drain().unwrap();
    }
}
