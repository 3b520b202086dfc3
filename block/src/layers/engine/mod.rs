//! The engine of one queue of a layered disk: an engine for each level, and what lies between
//! them.
//!
//! A request for blocks that one level answers for is forwarded to that level's engine. Others are
//! done step by step ([`steps`]): reads piece by piece; first writes of blocks under a claim, after
//! the blocks that they cover in part were copied to the top. A request has at most one request of
//! a level in flight, with its own tag; two tags more are for the write-backs of the map and of the
//! unflushed map ([`map_writer`], [`write_back`]).

mod cancel;
mod hold;
mod map_writer;
mod merged_writes;
mod sleep;
mod slot;
mod steps;
mod successions;
#[cfg(test)]
mod tests;
mod write_back;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll;

use self::map_writer::{MapKind, MapWriter};
use self::sleep::LevelsSleep;
pub use self::sleep::SimulatedSleep;
use self::slot::{ChangeStage, MergedWrites, Slot, SlotWork};
use self::successions::Successions;
use super::levels::Levels;
use super::seats::Seat;
use crate::kick::Kick;
use crate::{
    ByteOffset, ByteRange, Completion, Durability, EngineSetup, IoEngine, Operation, Request,
    Segment, Segments, Wake,
};

/// See the module's documentation.
pub(crate) struct LayerEngine {
    // Dropped first: the requests of the levels use the memory of the slots.
    engines: Vec<LevelEngine>,
    levels: Arc<Levels>,
    /// By tag.
    slots: Box<[Slot]>,
    /// The tag of the map's write-back. The one before is that of the unflushed map.
    map_tag: u16,
    map_writer: MapWriter,
    unflushed_writer: MapWriter,
    kick: Kick,
    /// Requests that wait for a claim or a write-back, by tag.
    waiting: Vec<u16>,
    /// Requests that are more than forwarded.
    stepping: usize,
    /// The first write that waits for others that continue it.
    merged: Option<MergedWrites>,
    /// Requests whose write is made together with that of another one.
    riders: usize,
    completed: Vec<Completion>,
    /// Completions of one level, between two uses.
    reaped: Vec<Completion>,
    /// Segments of a part of a request, between two uses.
    part: Segments,
    /// Steps were pushed to a level since the last submission.
    has_pushed: bool,
    /// Watches the descriptors of all levels, once [`IoEngine::poll_fd`] was called.
    events: Option<OwnedFd>,
    sleep: LevelsSleep,
    successions: Option<Successions>,
    /// The host refused an engine of the disk's new top: each request fails.
    is_lost: bool,
    /// [`LayerEngine::revive`] runs.
    is_reviving: bool,
}

/// The engine of one level.
struct LevelEngine {
    engine: Box<dyn IoEngine>,
    in_flight: usize,
}

impl LayerEngine {
    /// The depth that the levels need for a queue of this depth.
    pub(super) fn level_depth(depth: u16) -> u16 {
        depth.saturating_add(2)
    }

    /// An engine over those of the levels, from the top down, which have a depth of `depth` and
    /// this kick.
    pub(super) fn new(
        levels: Arc<Levels>,
        engines: Vec<Box<dyn IoEngine>>,
        depth: u16,
        kick: Kick,
    ) -> Self {
        let engines = engines.into_iter().map(|engine| LevelEngine { engine, in_flight: 0 });
        let engines = engines.collect();
        let slots = std::iter::repeat_with(Slot::default).take(depth.into()).collect();
        Self {
            engines,
            levels,
            slots,
            map_tag: depth.saturating_sub(1),
            map_writer: MapWriter::new(MapKind::Flushed),
            unflushed_writer: MapWriter::new(MapKind::Unflushed),
            kick,
            waiting: Vec::new(),
            stepping: 0,
            merged: None,
            riders: 0,
            completed: Vec::new(),
            reaped: Vec::new(),
            part: Segments::new(),
            has_pushed: false,
            events: None,
            sleep: LevelsSleep::default(),
            successions: None,
            is_lost: false,
            is_reviving: false,
        }
    }

    /// Puts the engine in a seat of its disk, where it learns of holds. `setup` is for the engines
    /// of the levels.
    pub(super) fn take_seat(&mut self, seat: Seat, setup: &EngineSetup<'_>) {
        self.successions = Some(Successions::new(seat, setup));
    }

    /// Sleeps with several levels by this from now on.
    pub(super) fn sleep_by(&mut self, sleep: SimulatedSleep) {
        self.sleep = LevelsSleep::simulated(sleep);
    }

    /// The level that answers for a transfer in one block, as most are, and its place there, if
    /// that is the top or a raw base below it.
    #[inline(always)] // By `make bench-gate`.
    fn aim_at_block(
        &mut self,
        at: ByteOffset,
        len: usize,
        is_write: bool,
    ) -> Option<(&mut LevelEngine, ByteOffset)> {
        // An empty transfer is of no block, and the level refuses one whose end overflows.
        let end = at.0.wrapping_add(len as u64);
        if end > self.levels.admitted() {
            return None;
        }
        let (level, place) = self.levels.block_answerer(at.0, end, is_write)?;
        Some((self.engines.get_mut(level)?, ByteOffset(place)))
    }

    /// Forwards a transfer to the level that answers for all of it, as one does for most.
    #[inline(never)] // By `make bench-gate`.
    fn push_wide(&mut self, mut request: Request<'_>) {
        match self.aim(&mut request) {
            Some(level) => self.push_to(level, request),
            None => self.push_other(request),
        }
    }

    /// The level that answers for all of a transfer, with the request changed to its place there.
    /// `None` leaves the request as it is.
    fn aim(&self, request: &mut Request<'_>) -> Option<usize> {
        let (at, is_write) = match &mut request.op {
            Operation::Read { at } => (at, false),
            Operation::Write { at, durability: Durability::Volatile } => (at, true),
            _ => return None,
        };
        let [segment] = request.segments.as_slice() else { return None };
        let end = at.0.checked_add(segment.len() as u64)?;
        if end > self.levels.admitted() || end == at.0 {
            return None;
        }
        let (level, place) = self.levels.answerer(at.0, end)?;
        if is_write && level > 0 {
            return None;
        }
        *at = ByteOffset(place);
        Some(level)
    }

    /// Pushes a request to a level. It completes to this engine.
    fn push_to(&mut self, level: usize, request: Request<'_>) {
        if let Some(LevelEngine { engine, in_flight }) = self.engines.get_mut(level) {
            *in_flight += 1;
            self.has_pushed = true;
            engine.push(request);
        }
    }

    /// Forwards a request whose blocks the level answers for.
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
        let mut completed = std::mem::take(&mut self.completed);
        self.harvest_forwarded(&mut completed);
        self.completed = completed;
    }

    /// Takes the completions of all levels, which are of requests that were forwarded.
    #[inline]
    fn harvest_forwarded(&mut self, completed: &mut Vec<Completion>) {
        for LevelEngine { engine, in_flight } in self.active() {
            let before = completed.len();
            engine.reap(completed);
            *in_flight -= completed.len() - before;
        }
    }

    /// The engines that may have something to do: that of the top, which other engines of its file
    /// may wait for, and those that have requests in flight.
    #[inline]
    fn active(&mut self) -> impl Iterator<Item = &mut LevelEngine> {
        let engines = self.engines.iter_mut().enumerate();
        engines.filter_map(|(index, level)| (index == 0 || level.in_flight > 0).then_some(level))
    }

    #[cold]
    fn harvest_steps(&mut self) {
        self.start_merged();
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
        self.active().try_for_each(|level| level.engine.submit())
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
        let due = self.due();
        let mut sleep = std::mem::take(&mut self.sleep);
        let slept = self.poll_fd().and_then(|events| sleep.until(events, due));
        self.sleep = sleep;
        slept?;
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
    fn push(&mut self, request: Request<'_>) {
        let (at, is_write) = match request.op {
            Operation::Read { at } => (at, false),
            Operation::Write { at, durability: Durability::Volatile } => (at, true),
            _ => return self.push_other(request),
        };
        if let [segment] = request.segments.as_slice()
            && let Some((level, at)) = self.aim_at_block(at, segment.len(), is_write)
        {
            level.in_flight += 1;
            return level.engine.push_contiguous(request.tag, *segment, at, is_write);
        }
        self.push_wide(request);
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let mut segments = std::mem::take(&mut self.part);
        segments.clear();
        segments.push(segment);
        let op = Operation::volatile_transfer(at, is_write);
        self.push(Request { tag, op, segments: &mut segments });
        self.part = segments;
    }

    fn submit(&mut self) -> io::Result<()> {
        self.start_merged();
        if !self.waiting.is_empty() {
            self.revive();
        }
        self.submit_levels()
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        if self.stepping > 0 {
            self.harvest_steps();
        } else {
            self.harvest_forwarded(completed);
        }
        if self.levels.has_orders() || self.has_spares() {
            self.follow_orders();
        }
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
        // The requests that wait, wait for one that is held, or for a map, whose write is.
        parked.saturating_sub(self.running_writers()) + self.waiting.len() + self.riders
    }

    fn due(&self) -> Option<Instant> {
        self.engines.iter().filter_map(|level| level.engine.due()).min()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        if let Some(is_canceled) = self.cancel_merged(tag) {
            return is_canceled;
        }
        if self.cancel_waiting(tag) {
            return true;
        }
        self.cancel_steps(tag);
        self.engines.iter_mut().any(|level| level.engine.cancel(tag))
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
        if self.stepping == 0 && self.completed.is_empty() {
            // The caller reaps what has completed.
            return Ok(Wake { kicked: self.sleep()? });
        }
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
        for kind in [MapKind::Flushed, MapKind::Unflushed] {
            let canceled = canceled(self.tag_of_map(kind));
            let (writer, levels) = self.writer_and_levels(kind);
            writer.abandon(levels, &canceled);
        }
        for (slot, tag) in self.slots.iter_mut().zip(0..) {
            let SlotWork::Change(change) = &mut slot.work else { continue };
            if let ChangeStage::Copying(copy) = &mut change.stage {
                copy.pages.take_back(&canceled(tag));
            }
            if !matches!(change.stage, ChangeStage::Claiming) {
                let (first, end) = change.touched();
                self.levels.top.give_back_blocks(first, end);
            }
            if let Some(claim) = change.claim.take() {
                self.levels.first_writes.release(&self.kick, claim);
            }
        }
    }
}
