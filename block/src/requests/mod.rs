//! The requests of one engine from push to completion: all of an engine but how the host is asked.
//!
//! A request is ready (its next call can be asked), asked (the host works on it), or set aside: for a
//! claim on blocks that others change, for an `fdatasync` that runs, or for want of space. Used from the worker's
//! thread. Nothing here waits, and nothing allocates but for what is set aside.
//!
//! One range at most is zeroed and one discarded at a time, so that however many there are, and however long the host
//! takes for them, it always has a thread for a read.
//!
//! One `fdatasync` runs at a time, for all requests that wanted one when it was asked. Two on one
//! descriptor would share one report of a lost write, and the other would call it durable.

mod discards;
mod place;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use self::discards::without_zeroes;
use self::place::{Place, State};
use crate::host_file::{Admission, HostFile};
use crate::range_lock::Claimant;
use crate::space::Waiting;
use crate::steps::{Call, Fit, InFlight, Progress, SimpleTransfer, plain_call};
use crate::threads::THREADS;
use crate::trim::Turns;
use crate::{Completion, EngineSetup, Operation, Request, Segments, total_len};

/// See the module's documentation.
pub(crate) struct Requests {
    host: Arc<HostFile>,
    /// By tag.
    places: Box<[Place]>,
    /// Requests that are no plain transfer, or not any more, by tag.
    slots: Box<[Option<InFlight>]>,
    ready: VecDeque<u16>,
    /// How many calls the host works on.
    asked: usize,
    /// What [`Requests::push_simple`] takes now.
    fit: Fit,
    finished: Vec<Completion>,
    syncs: Syncs,
    ranges: Ranges,
    held: Waiting,
    trims: Turns,
    /// This engine's end of the disk's range lock, and the tags that wait for it.
    claimant: Claimant,
    parked: Vec<u16>,
    /// Whether changes are claimed.
    claims: bool,
    /// How many changes in flight began before that, without a claim.
    unclaimed: usize,
    draining: bool,
}

/// Requests that want an `fdatasync`.
#[derive(Debug, Default)]
struct Syncs {
    /// Those that the running one is for; the first has asked for it.
    running: Vec<u16>,
    /// Those that came later, for the next.
    next: Vec<u16>,
}

/// The most ranges that the host is asked to zero at a time. With the one that is discarded, of which
/// [`Turns`] sees to it, and the one `fdatasync` they are fewer than the threads of a pool.
const MOST_ZEROED: usize = 1;
const _: () = assert!(MOST_ZEROED + 2 < THREADS, "a read finds a thread");

/// Requests that want a range zeroed.
#[derive(Debug)]
struct Ranges {
    running: usize,
    /// Those that wait for their turn.
    next: Vec<u16>,
}

impl Requests {
    /// # Errors
    ///
    /// The host gives no more descriptors.
    pub(crate) fn new(host: Arc<HostFile>, setup: &EngineSetup<'_>) -> io::Result<Self> {
        let depth = usize::from(setup.depth);
        let (claimant, claims) = host.range_lock.enter(setup.kick)?;
        let tags = || Vec::with_capacity(depth);
        Ok(Self {
            fit: if claims { Fit::NOTHING } else { Fit::of(&host) },
            trims: Turns::new(host.geometry.get().discard, &host.activity),
            host,
            places: std::iter::repeat_with(|| Place::VACANT).take(depth).collect(),
            slots: std::iter::repeat_with(|| None).take(depth).collect(),
            ready: VecDeque::with_capacity(depth),
            asked: 0,
            finished: Vec::with_capacity(depth),
            syncs: Syncs { running: tags(), next: tags() },
            ranges: Ranges { running: 0, next: tags() },
            held: Waiting::new(),
            claimant,
            parked: Vec::new(),
            claims,
            unclaimed: 0,
            draining: false,
        })
    }

    /// Takes a request that is what most are: a transfer of one piece that promises no durability and that the host takes
    /// as it is. Its call is returned, to be asked now and [settled](Self::settle). Of any other request nothing happens: it is
    /// for [`Requests::push`].
    #[inline]
    pub(crate) fn push_simple(&mut self, request: &Request<'_>) -> Option<SimpleTransfer> {
        let &Request { tag, op, ref segments } = request;
        let (state, at) = State::of(op).filter(|(state, _)| *state != State::DurableWrite)?;
        let &[segment] = segments.as_slice() else { return None };
        let place = self.places.get_mut(usize::from(tag))?;
        let bytes = u32::try_from(segment.len()).ok().filter(|bytes| *bytes != 0)?;
        let writes = state == State::Write;
        if place.state != State::Vacant
            || !self.fit.takes(&segment, at.0, writes)
            || !self.host.may_transfer(at.0, bytes, writes)
        {
            return None;
        }
        (place.state, place.bytes, place.at, place.one) = (state, bytes, at, Some(segment));
        self.asked += 1;
        self.trims.transfer_begins();
        Some(SimpleTransfer { at: at.0, base: segment.base(), bytes, writes })
    }

    /// Takes a request. The call of a plain transfer is returned: it is to be asked now, and [settled](Self::settle). What
    /// else there is to ask comes with [`Requests::next_call`].
    pub(crate) fn push(&mut self, request: Request<'_>) -> Option<Call> {
        let Request { tag, op, segments } = request;
        let bytes = total_len(segments) as u64;
        if let Admission::Settled(result) = self.host.admit(op, bytes) {
            self.finish(tag, op, result);
            return None;
        }
        let place = self.places.get_mut(usize::from(tag));
        let Some(place) = place.filter(|place| place.state == State::Vacant) else {
            self.finish(tag, op, Err(io::Error::from_raw_os_error(libc::EINVAL)));
            return None;
        };
        let op = without_zeroes(op, segments, &self.host);
        std::mem::swap(&mut place.segments, segments);
        if !self.claims
            && let Ok(bytes) = u32::try_from(bytes)
            && let Some((state, at)) = State::of(op)
            && let Some(call) = plain_call(op, &place.segments, &self.host)
        {
            (place.state, place.bytes, place.at, place.one) = (state, bytes, at, None);
            self.asked += 1;
            self.trims.transfer_begins();
            return Some(self.host.patiently(call));
        }
        let segments = std::mem::take(&mut place.segments);
        self.start(tag, op, segments);
        None
    }

    #[cold]
    fn fit_now(&self) -> Fit {
        if self.claims || self.host.keeps_waiting() { Fit::NOTHING } else { Fit::of(&self.host) }
    }

    /// Starts a request that is no plain transfer.
    fn start(&mut self, tag: u16, op: Operation, segments: Segments) {
        if matches!(op, Operation::CompareAndWrite { .. }) {
            self.host.range_lock.require();
            self.heed_claims();
        }
        self.make_in_flight(tag, op, segments);
        if is_transfer(op) {
            self.trims.transfer_begins();
        }
        match op {
            Operation::Discard { range, more_follows, .. } => {
                self.host.trimmed.asked(range.len);
                if !more_follows && self.trims.gather(tag, range, self.now()) {
                    return;
                }
            }
            Operation::WriteZeroes { range, unmap: true, .. } => {
                self.host.trimmed.asked(range.len);
            }
            // Nothing is held past a flush.
            Operation::Flush => self.discard_gathered(),
            _ => {}
        }
        self.set_off(tag);
    }

    /// Lets a request go its way, which ends at once if there is nothing to do.
    fn set_off(&mut self, tag: u16) {
        let Some(Some(request)) = self.slots.get(usize::from(tag)) else { return };
        if request.is_empty() {
            return self.end(tag, Ok(()));
        }
        if self.claims { self.claim(tag) } else { self.go_on(tag) }
    }

    fn make_in_flight(&mut self, tag: u16, op: Operation, segments: Segments) {
        let place = usize::from(tag);
        if let (Some(place), Some(slot)) = (self.places.get_mut(place), self.slots.get_mut(place)) {
            place.state = State::InFlight;
            *slot = Some(InFlight::new(op, segments, &self.host));
        }
    }

    /// The next call to ask the host. Each has to be [settled](Self::settle).
    pub(crate) fn next_call(&mut self) -> Option<(u16, Call)> {
        let tag = self.ready.pop_front()?;
        let request = self.slots.get_mut(usize::from(tag))?.as_mut()?;
        self.asked += 1;
        let (zeroes, call) = (request.is_zeroing(), self.host.patiently(request.call()));
        if zeroes {
            self.host.zeroing.fetch_add(1, Ordering::Relaxed);
            self.fit = self.fit_now();
        }
        Some((tag, call))
    }

    /// Takes the host's answer to a request's call: a count of bytes or a negated errno. `true` if another call may be
    /// ready after it.
    #[inline]
    pub(crate) fn settle(&mut self, tag: u16, answer: i32) -> bool {
        if let Some(place) = self.places.get_mut(usize::from(tag))
            && matches!(place.state, State::Read | State::Write)
            && i64::from(answer) == i64::from(place.bytes)
        {
            place.state = State::Vacant;
            self.asked -= 1;
            self.trims.transfer_ends();
            self.finished.push(Completion { tag, result: Ok(()) });
            return false;
        }
        self.settle_step(tag, answer);
        true
    }

    /// As [`Requests::settle`], for all but what most requests are.
    #[cold]
    fn settle_step(&mut self, tag: u16, answer: i32) {
        let Some(place) = self.places.get_mut(usize::from(tag)) else { return };
        if let Some(op) = place.plain_op() {
            if i64::from(answer) == i64::from(place.bytes) {
                place.state = State::Vacant;
                self.asked -= 1;
                self.trims.transfer_ends();
                return self.finish(tag, op, self.host.check_promise(op));
            }
            let segments = place.take_segments();
            self.make_in_flight(tag, op, segments);
        }
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        let syncing = request.is_syncing();
        let trimming = request.is_trimming().then(|| request.range_left());
        let ranging = request.is_ranging() && trimming.is_none();
        if request.is_zeroing() {
            self.host.zeroing.fetch_sub(1, Ordering::Relaxed);
        }
        let progress = request.settle(answer, &self.host);
        let left = request.range_left();
        let more = matches!(request.op(), Operation::Discard { more_follows: true, .. });
        self.asked = self.asked.saturating_sub(1);
        if let Some(before) = trimming {
            let (bytes, now) = (before.saturating_sub(left), self.host.clock.now());
            self.trims.end(now, bytes, more, &self.host.activity);
        }
        match progress {
            Progress::Again if self.draining => {
                self.end(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            }
            Progress::Again => self.go_on(tag),
            Progress::NoSpace(error) => self.hold(tag, error),
            Progress::Done(result) if syncing => self.synced(&result),
            Progress::Done(result) => self.end(tag, result),
        }
        if ranging {
            self.ranges.running = self.ranges.running.saturating_sub(1);
            if !self.ranges.next.is_empty() {
                let next = self.ranges.next.remove(0);
                self.go_on(next);
            }
        }
        self.take_turns();
    }

    /// How many calls the host works on.
    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    /// Moves what has finished to the end of `completed`.
    #[inline]
    pub(crate) fn take_finished(&mut self, completed: &mut Vec<Completion>) {
        completed.append(&mut self.finished);
        // Once for all that is pushed until then.
        if self.host.may_keep_waiting() {
            self.fit = self.fit_now();
        }
    }

    pub(crate) fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    /// How many requests wait for a time.
    pub(crate) fn held(&self) -> usize {
        self.held.len() + self.trims.len()
    }

    /// When held requests are to be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.held.due()
    }

    /// When discards are to go on.
    pub(crate) fn trims_due(&self) -> Option<Instant> {
        self.trims.due()
    }

    /// The time that [`Requests::due`] and [`Requests::trims_due`] are of.
    pub(crate) fn now(&self) -> Instant {
        self.host.clock.now()
    }

    /// Whether requests are set aside that [`Requests::revive`] may find ready.
    pub(crate) fn has_set_aside(&self) -> bool {
        !self.parked.is_empty() || self.held.due().is_some() || self.trims.due().is_some()
    }

    /// Readies what was set aside and need not be any more.
    #[cold]
    pub(crate) fn revive(&mut self) {
        if self.draining {
            return;
        }
        self.unpark();
        if self.held.due().is_some() {
            for tag in self.held.take_due(self.now(), self.host.space.is_stopped()) {
                if self.claims { self.claim(tag) } else { self.go_on(tag) }
            }
        }
        if self.trims.due().is_some() {
            if self.trims.is_gathered(self.now()) {
                self.discard_gathered();
            }
            self.take_turns();
        }
    }

    /// From now on requests end with the host's next answer, and what is set aside is not asked any more.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Readies a request for its next call, or lets it wait for the running `fdatasync`.
    fn go_on(&mut self, tag: u16) {
        if self.draining {
            return;
        }
        let Some(Some(request)) = self.slots.get(usize::from(tag)) else { return };
        if request.is_trimming() {
            self.trims.queue(tag);
            return self.take_turns();
        }
        if request.is_syncing() {
            match self.syncs.running.first() {
                None => self.syncs.running.push(tag),
                Some(&first) if first == tag => {}
                Some(_) => return self.syncs.next.push(tag),
            }
        }
        if request.is_ranging() {
            if self.ranges.running >= MOST_ZEROED {
                return self.ranges.next.push(tag);
            }
            self.ranges.running += 1;
        }
        self.ready.push_back(tag);
    }

    /// An `fdatasync` has ended, for all that waited for it.
    fn synced(&mut self, result: &io::Result<()>) {
        let mut ended = std::mem::take(&mut self.syncs.running);
        for &tag in &ended {
            self.end(tag, copy_of(result));
        }
        ended.clear();
        self.syncs.running = std::mem::replace(&mut self.syncs.next, ended);
        if let Some(&first) = self.syncs.running.first() {
            self.go_on(first);
        }
    }

    /// Claims what is changed from now on, if that has become required. To be asked after each kick.
    #[cold]
    pub(crate) fn heed_claims(&mut self) {
        if self.claims || !self.host.range_lock.is_required() {
            return;
        }
        self.claims = true;
        self.fit = Fit::NOTHING;
        for tag in 0..self.places.len() {
            let Ok(tag) = u16::try_from(tag) else { break };
            self.count_unclaimed(tag);
        }
        self.check_unclaimed();
    }

    /// Counts a change that is in flight without a claim. Plain transfers are so no more: their end is looked at.
    fn count_unclaimed(&mut self, tag: u16) {
        let Some(place) = self.places.get_mut(usize::from(tag)) else { return };
        if let State::Write | State::DurableWrite = place.state
            && let Some(op) = place.plain_op()
        {
            let segments = place.take_segments();
            self.make_in_flight(tag, op, segments);
        }
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        // One that is held claims when it is asked again, and one that is gathered when it sets off.
        if request.changes().is_some() && !self.held.contains(tag) && !self.trims.gathers(tag) {
            request.is_unclaimed = true;
            self.unclaimed += 1;
        }
    }

    /// Says so once nothing is in flight without a claim.
    fn check_unclaimed(&mut self) {
        if self.unclaimed == 0 {
            self.host.range_lock.claims_all(&self.claimant);
            self.unpark();
        }
    }

    /// Claims the blocks a request changes, and readies it when they are free.
    fn claim(&mut self, tag: u16) {
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        let Some(bytes) = request.changes() else { return self.go_on(tag) };
        let compares = matches!(request.op(), Operation::CompareAndWrite { .. });
        let (claim, free) = self.host.range_lock.claim(&self.claimant, &bytes, compares);
        request.claim = Some(claim);
        if free { self.go_on(tag) } else { self.parked.push(tag) }
    }

    /// Gives back the claim of a request, whose blocks others of this engine may wait for; or takes one that began
    /// without a claim out of the count.
    fn unclaim(&mut self, tag: u16) {
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        if let Some(claim) = request.claim.take() {
            self.host.range_lock.release(&self.claimant, claim);
            self.unpark();
        } else if std::mem::take(&mut request.is_unclaimed) {
            self.unclaimed -= 1;
            self.check_unclaimed();
        }
    }

    /// Readies the requests whose blocks have become free.
    fn unpark(&mut self) {
        let (lock, slots) = (&self.host.range_lock, &self.slots);
        let is_free = |tag: &mut u16| {
            let request = slots.get(usize::from(*tag)).and_then(Option::as_ref);
            request.and_then(|r| r.claim.as_ref()).is_some_and(|claim| lock.is_free(claim))
        };
        let freed: Vec<u16> = self.parked.extract_if(.., is_free).collect();
        freed.into_iter().for_each(|tag| self.go_on(tag));
    }

    /// Ends a request that the host is not asked for now, with `ECANCELED`: one that is set aside, or waits for its turn.
    /// `false` if the host works on it, or there is none.
    #[cold]
    pub(crate) fn cancel(&mut self, tag: u16) -> bool {
        let lists =
            [&mut self.parked, &mut self.syncs.next, &mut self.ranges.next, self.held.tags()];
        let mut found = self.trims.cancel(tag);
        for list in lists {
            let before = list.len();
            list.retain(|waiting| *waiting != tag);
            found |= list.len() != before;
        }
        if found {
            let others: Vec<u16> = std::iter::from_fn(|| self.trims.next_rider(tag)).collect();
            self.end(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            others.into_iter().for_each(|other| self.gather_again(other));
        }
        found
    }

    /// Sets a request aside until there may be space, or ends it.
    #[cold]
    fn hold(&mut self, tag: u16, error: io::Error) {
        let now = self.now();
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        let since = request.held_since.unwrap_or(now);
        let deadline = self.host.space.holds_until(since).filter(|&deadline| deadline > now);
        let Some(deadline) = deadline.filter(|_| !self.draining) else {
            return self.end(tag, Err(error));
        };
        if request.held_since.replace(since).is_none() {
            self.host.space.enter(&error, now);
        }
        request.lift();
        self.held.hold(tag, now, deadline);
        if self.claims {
            self.unclaim(tag);
        }
    }

    /// Ends a request.
    fn end(&mut self, tag: u16, result: io::Result<()>) {
        if self.claims {
            self.unclaim(tag);
        }
        let Some(request) = self.slots.get_mut(usize::from(tag)).and_then(Option::take) else {
            return;
        };
        if let Some(since) = request.held_since {
            self.host.space.leave(since);
            if result.is_ok() {
                self.held.space_was_had();
            }
        }
        let op = request.op();
        if is_transfer(op) {
            self.trims.transfer_ends();
        }
        // Of two requests, the kernel may have told the other one of what this one lost.
        let result = result.and_then(|()| self.host.check_promise(op));
        if let Some(place) = self.places.get_mut(usize::from(tag)) {
            place.vacate(request.into_segments());
        }
        while let Some(rider) = self.trims.next_rider(tag) {
            self.end(rider, copy_of(&result));
        }
        self.finish(tag, op, result);
    }

    #[cold]
    fn finish(&mut self, tag: u16, op: Operation, result: io::Result<()>) {
        if let (Err(error), false) = (&result, self.draining) {
            self.host.failures.note(op, error);
        }
        self.finished.push(Completion { tag, result });
    }
}

impl Drop for Requests {
    /// What is set aside ends unasked: its account and its claims are the disk's.
    fn drop(&mut self) {
        debug_assert!(self.asked == 0);
        self.draining = true;
        for tag in 0..self.slots.len() {
            let Ok(tag) = u16::try_from(tag) else { break };
            self.end(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        self.host.range_lock.leave(&self.claimant);
        debug_assert!(self.trims.transfers_none());
    }
}

/// Whether discards are to keep out of its way.
fn is_transfer(op: Operation) -> bool {
    match op {
        Operation::Read { .. } | Operation::Write { .. } | Operation::CompareAndWrite { .. } => {
            true
        }
        Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => false,
    }
}

/// The same result for another request.
fn copy_of(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(error
            .raw_os_error()
            .map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error)),
    }
}
