//! The engine of one queue of a layered disk: an engine for each level, and what lies between
//! them.
//!
//! A request for blocks that one level answers for is forwarded to that level's engine. Others are
//! done step by step ([`steps`]): reads piece by piece; first writes of blocks under a claim, after
//! the blocks that they cover in part were copied to the top. A request has at most one request of
//! a level in flight, with its own tag; one tag more is for the write-back of the map
//! ([`map_writer`]).

mod map_writer;
mod slot;
mod steps;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use self::map_writer::MapWriter;
use self::slot::{ChangeStage, Slot, SlotWork};
use super::levels::Levels;
use crate::kick::Kick;
use crate::{
    ByteOffset, ByteRange, Completion, Durability, EngineSetup, IoEngine, Operation, Request,
    Segments, Wake,
};

/// See the module's documentation.
pub(crate) struct LayerEngine {
    // Dropped first: the requests of the levels use the memory of the slots.
    engines: Vec<LevelEngine>,
    levels: Arc<Levels>,
    /// By tag.
    slots: Box<[Slot]>,
    /// The tag of the map's write-back.
    map_tag: u16,
    map_writer: MapWriter,
    kick: Kick,
    /// Requests that wait for a claim or a write-back, by tag.
    waiting: Vec<u16>,
    /// Requests that are more than forwarded.
    stepping: usize,
    completed: Vec<Completion>,
    /// Completions of one level, between two uses.
    reaped: Vec<Completion>,
    /// Segments of a part of a request, between two uses.
    part: Segments,
    /// Requests were pushed to a level since the last submission.
    has_pushed: bool,
    /// Watches the descriptors of all levels, once [`IoEngine::poll_fd`] was called.
    events: Option<OwnedFd>,
}

/// The engine of one level.
struct LevelEngine {
    engine: Box<dyn IoEngine>,
    in_flight: usize,
}

impl LayerEngine {
    /// The depth that the levels need for a queue of this depth.
    pub(super) fn level_depth(depth: u16) -> u16 {
        depth.saturating_add(1)
    }

    /// An engine over those of the levels, from the top down, which `setup` is for.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(super) fn new(
        levels: Arc<Levels>,
        engines: Vec<Box<dyn IoEngine>>,
        setup: &EngineSetup<'_>,
    ) -> io::Result<Self> {
        let kick = Kick::new(setup.kick)?;
        let engines = engines.into_iter().map(|engine| LevelEngine { engine, in_flight: 0 });
        let engines = engines.collect();
        let depth = setup.depth;
        let slots = std::iter::repeat_with(Slot::default).take(depth.into()).collect();
        Ok(Self {
            engines,
            levels,
            slots,
            map_tag: depth.saturating_sub(1),
            map_writer: MapWriter::default(),
            kick,
            waiting: Vec::new(),
            stepping: 0,
            completed: Vec::new(),
            reaped: Vec::new(),
            part: Segments::new(),
            has_pushed: false,
            events: None,
        })
    }

    /// The level that answers for a transfer, and its place there, as most transfers have it.
    #[inline(always)] // By `make bench-gate`.
    fn forward_of(&self, at: ByteOffset, segments: &Segments) -> Option<(usize, ByteOffset)> {
        let [segment] = segments.as_slice() else { return None };
        let end = at.0.checked_add(segment.len() as u64)?;
        if end > self.levels.capacity() || end == at.0 {
            return None;
        }
        let (level, place) = self.levels.answerer(at.0, end)?;
        Some((level, ByteOffset(place)))
    }

    /// Pushes a request to a level. It completes to this engine.
    #[inline(always)] // By `make bench-gate`.
    fn push_to(&mut self, level: usize, request: Request<'_>) {
        if let Some(LevelEngine { engine, in_flight }) = self.engines.get_mut(level) {
            *in_flight += 1;
            self.has_pushed = true;
            engine.push(request);
        }
    }

    /// Forwards a request whose blocks the level answers for.
    #[inline]
    fn forward(&mut self, level: usize, request: Request<'_>) {
        let place = |at: ByteOffset| ByteOffset(self.levels.place(level, at.0));
        let op = moved(request.op, place);
        self.push_to(level, Request { op, ..request });
    }

    fn complete(&mut self, tag: u16, result: io::Result<()>) {
        self.completed.push(Completion { tag, result });
    }

    /// Takes the completions of all levels, and does the steps that follow.
    fn harvest(&mut self) {
        if self.stepping > 0 {
            return self.harvest_steps();
        }
        // All completions are of requests that were forwarded.
        for LevelEngine { engine, in_flight } in &mut self.engines {
            let before = self.completed.len();
            engine.reap(&mut self.completed);
            *in_flight -= self.completed.len() - before;
        }
    }

    #[cold]
    fn harvest_steps(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        for index in 0..self.engines.len() {
            let Some(level) = self.engines.get_mut(index) else { continue };
            level.engine.reap(&mut reaped);
            level.in_flight -= reaped.len();
            for completion in reaped.drain(..) {
                self.handle(completion);
            }
        }
        self.reaped = reaped;
        self.revive();
    }

    /// Submits what was pushed to the levels.
    fn submit_levels(&mut self) -> io::Result<()> {
        self.has_pushed = false;
        self.engines.iter_mut().try_for_each(|level| level.engine.submit())
    }

    /// The levels that have requests in flight.
    fn busy(&self) -> impl Iterator<Item = usize> {
        let busy = |(index, level): (usize, &LevelEngine)| (level.in_flight > 0).then_some(index);
        self.engines.iter().enumerate().filter_map(busy)
    }

    /// Sleeps until a level may have a completion, or the kick is signalled. Returns whether it
    /// was.
    fn sleep(&mut self) -> io::Result<bool> {
        let mut busy = self.busy();
        let (first, second) = (busy.next(), busy.next());
        drop(busy);
        if second.is_none()
            && let Some(level) = self.engines.get_mut(first.unwrap_or(0))
        {
            return Ok(level.engine.wait()?.kicked);
        }
        self.submit_levels()?;
        // A request may complete as it is pushed or submitted, without an event.
        if self.is_ready() {
            self.clear_poll_fd();
            return Ok(true);
        }
        let due = self.due().map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = due.map(|due| Timespec {
            tv_sec: i64::try_from(due.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: due.subsec_nanos().into(),
        });
        let events = self.poll_fd()?;
        match poll(&mut [PollFd::new(&events, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.clear_poll_fd();
        // The kick may have been among the events.
        Ok(true)
    }
}

/// The operation elsewhere in a file.
#[inline]
fn moved(op: Operation, place: impl Fn(ByteOffset) -> ByteOffset) -> Operation {
    let moved = |range: ByteRange| ByteRange { start: place(range.start), ..range };
    match op {
        Operation::Read { at } => Operation::Read { at: place(at) },
        Operation::Write { at, durability } => Operation::Write { at: place(at), durability },
        Operation::CompareAndWrite { at, durability } => {
            Operation::CompareAndWrite { at: place(at), durability }
        }
        Operation::Flush => Operation::Flush,
        Operation::Discard { range, durability, more_follows } => {
            Operation::Discard { range: moved(range), durability, more_follows }
        }
        Operation::WriteZeroes { range, unmap, durability } => {
            Operation::WriteZeroes { range: moved(range), unmap, durability }
        }
    }
}

impl IoEngine for LayerEngine {
    #[inline]
    fn push(&mut self, request: Request<'_>) {
        let Request { tag, op, segments } = request;
        match op {
            Operation::Read { at } => {
                if let Some((level, at)) = self.forward_of(at, segments) {
                    return self
                        .push_to(level, Request { tag, op: Operation::Read { at }, segments });
                }
            }
            Operation::Write { at, durability: durability @ Durability::Volatile } => {
                if let Some((0, at)) = self.forward_of(at, segments) {
                    let op = Operation::Write { at, durability };
                    return self.push_to(0, Request { tag, op, segments });
                }
            }
            _ => {}
        }
        self.push_other(Request { tag, op, segments });
    }

    fn submit(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.revive();
        }
        self.submit_levels()
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        self.harvest();
        if self.has_pushed && self.stepping > 0 {
            // An error shows again at the next submission.
            let _ = self.submit_levels();
        }
        completed.append(&mut self.completed);
    }

    fn parked(&self) -> usize {
        let parked: usize = self.engines.iter().map(|level| level.engine.parked()).sum();
        if parked == 0 {
            return 0;
        }
        // The requests that wait, wait for one that is held, or for the map, whose write is.
        let is_map_parked = self.map_writer.is_running();
        parked - usize::from(is_map_parked) + self.waiting.len()
    }

    fn due(&self) -> Option<Instant> {
        self.engines.iter().filter_map(|level| level.engine.due()).min()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        self.cancel_waiting(tag) || self.engines.iter_mut().any(|level| level.engine.cancel(tag))
    }

    fn is_ready(&self) -> bool {
        let is_ready = |(index, level): (usize, &LevelEngine)| {
            (index == 0 || level.in_flight > 0) && level.engine.is_ready()
        };
        !self.completed.is_empty() || self.engines.iter().enumerate().any(is_ready)
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        let events = match self.events.take() {
            Some(events) => events,
            None => {
                let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                for level in &mut self.engines {
                    let (fd, data) = (level.engine.poll_fd()?, epoll::EventData::new_u64(0));
                    epoll::add(&events, fd, data, epoll::EventFlags::IN)?;
                }
                events
            }
        };
        let events: &OwnedFd = self.events.insert(events);
        Ok(events.as_fd())
    }

    fn clear_poll_fd(&mut self) {
        self.engines.iter_mut().for_each(|level| level.engine.clear_poll_fd());
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.harvest();
        let kicked = self.completed.is_empty() && self.sleep()?;
        // A completion may be a step only. The caller has other engines to serve.
        self.harvest();
        self.submit()?;
        Ok(Wake { kicked })
    }
}

impl Drop for LayerEngine {
    /// Waits for the requests of the levels, then releases their claims and the map.
    fn drop(&mut self) {
        self.engines.clear();
        let canceled =
            |tag| Completion { tag, result: Err(io::Error::from_raw_os_error(libc::ECANCELED)) };
        self.map_writer.abandon(&self.levels, &canceled(self.map_tag));
        for (slot, tag) in self.slots.iter_mut().zip(0..) {
            let SlotWork::Change(change) = &mut slot.work else { continue };
            if let ChangeStage::Copying(copy) = &mut change.stage {
                copy.pages.take_back(&canceled(tag));
            }
            if let Some(claim) = change.claim.take() {
                self.levels.first_writes.release(&self.kick, claim);
            }
        }
    }
}
