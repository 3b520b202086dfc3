//! The engines of one request queue: one for each disk that it has I/O for, made at the first.
//!
//! With one engine the worker sleeps in it, where the kick is watched as well: one system call for everything. With
//! several it sleeps in a poll of the kick and of their descriptors. Used on the worker's thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ::block::{Completion, EngineSetup, IoEngine, LogLimit, MemoryRegion, OpenError, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::shared::Shared;
use crate::event;
use crate::storage::queue_worker::Engines;

/// How often engines are looked at that hold requests until the host has space again: that shows on no descriptor.
const HELD_PERIOD: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How requests end whose disk went before it had an engine.
pub(super) const GONE: i32 = libc::ENODEV;

/// See the module's documentation.
pub(super) struct UnitEngines {
    // Dropped first: engines use what follows.
    engines: Vec<Unit>,
    /// The place of each unit's engine, by the unit's number.
    places: Vec<Option<usize>>,
    /// Whether there are engines of disks that are gone.
    owes: bool,
    /// Whether the one engine that is left sleeps as if there were others.
    alone: bool,
    /// Counts, so that now and then all engines are looked at.
    submits: u8,
    /// Requests that no engine could be made for.
    refused: Vec<Completion>,
    completed: Vec<Completion>,
    shared: Arc<Shared>,
    version: u64,
    depth: u16,
    memory: Vec<MemoryRegion>,
    kick: Arc<EventFd>,
    no_engine: LogLimit,
}

struct Unit {
    number: u16,
    engine: Box<dyn IoEngine>,
    in_flight: usize,
    /// It has been woken.
    signalled: bool,
    /// Whether the queue's kick wakes it.
    watches_kick: bool,
    /// How others wake it, where the queue's kick does not.
    _own_kick: Option<EventFd>,
    /// In use as long as it has an engine.
    _disk: Arc<Disk>,
}

impl UnitEngines {
    pub(super) fn new(shared: Arc<Shared>, setup: &EngineSetup<'_>, kick: Arc<EventFd>) -> Self {
        let EngineSetup { depth, memory, .. } = *setup;
        Self {
            engines: Vec::new(),
            places: Vec::new(),
            owes: false,
            alone: false,
            submits: 0,
            refused: Vec::new(),
            completed: Vec::with_capacity(usize::from(depth)),
            version: shared.version(),
            shared,
            depth,
            memory: memory.to_vec(),
            kick,
            no_engine: LogLimit::default(),
        }
    }

    fn place(&self, number: u16) -> Option<usize> {
        *self.places.get(usize::from(number))?
    }

    /// Makes the engine of a unit, which is added to the others.
    #[cold]
    fn make(&mut self, number: u16) -> Result<usize, OpenError> {
        let watches_kick = self.engines.is_empty();
        let unit = self.unit(number, watches_kick)?;
        self.engines.push(unit);
        self.alone = false;
        self.place_all();
        Ok(self.engines.len() - 1)
    }

    fn unit(&self, number: u16, watches_kick: bool) -> Result<Unit, OpenError> {
        let refused = |what| move |source| OpenError::Host { path: "/".into(), what, source };
        let gone = || io::Error::from_raw_os_error(GONE);
        let map = self.shared.map();
        let disk = map.disk(number).ok_or_else(gone).map_err(refused("find the disk"))?;
        let own_kick = if watches_kick {
            None
        } else {
            Some(EventFd::new(EFD_NONBLOCK).map_err(refused("create an event"))?)
        };
        let kick = event::as_fd(own_kick.as_ref().unwrap_or(&self.kick));
        let setup = EngineSetup { depth: self.depth, memory: &self.memory, kick };
        let engine = disk.unit.backend().engine(&setup)?;
        let (_own_kick, _disk) = (own_kick, Arc::clone(disk));
        Ok(Unit { number, engine, in_flight: 0, signalled: true, watches_kick, _own_kick, _disk })
    }

    fn place_all(&mut self) {
        self.places.clear();
        for (place, unit) in self.engines.iter().enumerate() {
            let number = usize::from(unit.number);
            if self.places.len() <= number {
                self.places.resize(number + 1, None);
            }
            if let Some(entry) = self.places.get_mut(number) {
                *entry = Some(place);
            }
        }
    }

    /// Drops the engines of disks that are gone, once nothing of them is in flight.
    #[inline]
    fn follow(&mut self) {
        if self.owes || self.shared.version() != self.version {
            self.let_go();
        }
        if self.alone {
            self.settle_down();
        }
    }

    #[cold]
    fn let_go(&mut self) {
        self.version = self.shared.version();
        let map = self.shared.map();
        let is_gone = |unit: &Unit| map.disk(unit.number).is_none();
        self.engines.retain(|unit| unit.in_flight > 0 || !is_gone(unit));
        self.owes = self.engines.iter().any(is_gone);
        self.alone = matches!(self.engines.as_slice(), [only] if !only.watches_kick);
        self.place_all();
    }

    /// Lets the one engine that is left watch the kick, so that the worker sleeps in it: in another one of the same disk, once
    /// it is idle.
    #[cold]
    fn settle_down(&mut self) {
        let [only] = self.engines.as_slice() else { return };
        if only.in_flight > 0 {
            return;
        }
        self.alone = false;
        // Where the host gives no other engine, this one goes on as it is.
        if let Ok(unit) = self.unit(only.number, true)
            && let [only] = self.engines.as_mut_slice()
        {
            *only = unit;
        }
    }

    /// Sleeps until the kick or an engine has something.
    fn sleep(&mut self) -> io::Result<()> {
        let held = self.engines.iter().any(|unit| (*unit.engine).parked() > 0);
        let mut fds = Vec::with_capacity(1 + self.engines.len());
        fds.push(poll_in(event::as_fd(&self.kick)));
        for unit in &mut self.engines {
            fds.push(poll_in(unit.engine.poll_fd()?));
        }
        match poll(&mut fds, held.then_some(&HELD_PERIOD)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let woken: Vec<bool> = fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let _ = self.kick.read();
        for (unit, woken) in self.engines.iter_mut().zip(woken) {
            if woken || held {
                // Silent before it is reaped, so that nothing is overlooked that comes in between. What woke it may
                // still have to be posted.
                unit.engine.clear_poll_fd();
                (*unit.engine).submit()?;
                unit.signalled = true;
            }
        }
        Ok(())
    }
}

fn poll_in(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

impl Engines for UnitEngines {
    fn push(&mut self, unit: u16, request: Request<'_>) {
        let place = match self.place(unit) {
            Some(place) => Ok(place),
            None => self.make(unit),
        };
        match place {
            Ok(place) => {
                if let Some(unit) = self.engines.get_mut(place) {
                    unit.in_flight += 1;
                    (*unit.engine).push(request);
                }
            }
            Err(error) => {
                let gone = matches!(&error, OpenError::Host { source, .. } if source.raw_os_error() == Some(GONE));
                if !gone && let Some(suppressed) = self.no_engine.check() {
                    let name = &self.shared.name;
                    tracing::error!(target: "virtio-scsi", suppressed, "{name}: a disk has no engine: {error}");
                }
                let errno = if gone { GONE } else { libc::EIO };
                let result = Err(io::Error::from_raw_os_error(errno));
                self.refused.push(Completion { tag: request.tag, result });
            }
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        // One that is idle may be kicked by others. A driver that is never idle lets nobody sleep, who would see that.
        self.submits = self.submits.wrapping_add(1);
        let all = self.submits == 0;
        let mut looked_at = self.engines.iter_mut().filter(|unit| unit.in_flight > 0 || all);
        looked_at.try_for_each(|unit| {
            unit.signalled |= all;
            (*unit.engine).submit()
        })
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        // Here as well, because a driver that is never idle lets nobody wait.
        self.follow();
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
        let place = self.place(unit);
        let unit = place.and_then(|place| self.engines.get_mut(place));
        unit.is_some_and(|unit| (*unit.engine).cancel(tag))
    }

    fn wait(&mut self) -> io::Result<()> {
        self.follow();
        if !self.refused.is_empty() {
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
            for unit in self.engines.iter_mut().filter(|unit| unit.engine.is_ready()) {
                unit.engine.clear_poll_fd();
                unit.signalled = true;
            }
            return Ok(());
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
    use crate::GuestMemory;
    use crate::scsi::Identity;
    use crate::virtio::GuestMap;
    use crate::virtio::scsi::shared::Address;

    const DISK: Address = Address { target: 0, lun: 0 };

    fn attach(shared: &Arc<Shared>, lun: u16) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack)).unwrap();
        let identity = Identity::new("disk", "/");
        shared.attach(Address { target: 0, lun }, "disk", identity, Arc::new(disk)).unwrap();
        file
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

    /// One that sleeps in its engine makes one system call, one that sleeps in a poll of several makes three.
    #[test]
    fn a_disk_that_is_left_alone_is_slept_in_again() {
        let shared = Arc::new(Shared::new("scsi", 1).unwrap());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
        let mut engines = UnitEngines::new(Arc::clone(&shared), &setup, Arc::clone(&kick));
        let _files = [attach(&shared, 0), attach(&shared, 1)];
        for number in 0..2 {
            flush(&mut engines, number);
            assert_eq!(complete(&mut engines).tag, number);
        }
        let watches = |engines: &UnitEngines| -> Vec<_> {
            engines.engines.iter().map(|unit| (unit.number, unit.watches_kick)).collect()
        };
        assert_eq!(watches(&engines), [(0, true), (1, false)]);
        flush(&mut engines, 1);
        let leaving = shared.detach(DISK).unwrap();
        engines.follow();
        assert_eq!(watches(&engines), [(1, false)], "it is busy");
        assert!(complete(&mut engines).result.is_ok());
        engines.follow();
        assert_eq!(watches(&engines), [(1, true)]);
        // A kick wakes it, and so does a completion.
        kick.write(1).unwrap();
        engines.wait().unwrap();
        flush(&mut engines, 1);
        assert!(complete(&mut engines).result.is_ok());
        leaving.settle().unwrap();
    }

    /// Compare-and-write waits for each engine of its disk, also for one that has nothing to do, of a worker that has no
    /// time to sleep.
    #[test]
    fn an_idle_engine_hears_of_others_without_a_sleep() {
        let shared = Arc::new(Shared::new("scsi", 2).unwrap());
        let kicks = [(); 2].map(|()| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let _files = [attach(&shared, 0), attach(&shared, 1)];
        let [mut busy, mut other] = kicks.map(|kick| {
            let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
            UnitEngines::new(Arc::clone(&shared), &setup, Arc::clone(&kick))
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
        assert!(compared.pop().expect("it is done").result.is_ok());
    }

    /// A driver that is never idle lets no worker sleep.
    #[test]
    fn the_engine_of_a_disk_that_is_gone_ends_without_a_sleep() {
        let shared = Arc::new(Shared::new("scsi", 1).unwrap());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let setup = EngineSetup { depth: 8, memory: &[], kick: event::as_fd(&kick) };
        let mut engines = UnitEngines::new(Arc::clone(&shared), &setup, Arc::clone(&kick));
        let _file = attach(&shared, 0);
        let mut completed = Vec::new();
        flush(&mut engines, 0);
        let leaving = shared.detach(DISK).unwrap();
        while completed.is_empty() {
            assert_eq!(engines.engines.len(), 1, "it is in use");
            engines.submit().unwrap();
            engines.reap(&mut completed);
        }
        engines.reap(&mut completed);
        assert_eq!((engines.engines.len(), completed.len()), (0, 1));
        leaving.settle().unwrap();
    }
}
