//! The simulated kernel: rings, the calls it works on, and everything it may do to them.
//!
//! Deterministic, and moved on one [`Host::step`] at a time. A call runs through: taken from the
//! ring, its fate drawn, its sectors moved one after another (in any order with direct I/O),
//! answered. A failed write-back loses data and is reported once to each open file description, as
//! Linux does.

use std::collections::VecDeque;
use std::time::Duration;

use block::simulation::{Clock, RingResult};

use super::call::{Call, Fate, errno};
use super::entry::{Ask, Entry};
use super::media::Media;
use super::plan::Plan;
use super::random::Random;

/// The user data of the kick's poll is no tag.
fn is_tag(user_data: u64) -> bool {
    user_data <= u64::from(u16::MAX)
}

/// One ring with the open file description that is registered in it.
#[derive(Debug, Default)]
struct Ring {
    submitted: VecDeque<Entry>,
    capacity: usize,
    answers: VecDeque<RingResult>,
    /// Posted when the ring is entered.
    deferred: VecDeque<RingResult>,
    /// The poll of the kick, by its user data.
    poll: Option<u64>,
    /// When the wait of the sleeping engine times out, in nanoseconds.
    deadline_ns: Option<u64>,
    /// Whether the kick was ever signalled: nobody reads it, so that it stays readable.
    kicked: bool,
    /// How many write-back errors were reported here.
    reported: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Host {
    plan: Plan,
    pub(super) random: Random,
    pub(super) media: Media,
    rings: Vec<Ring>,
    calls: Vec<Call>,
    /// Write-back errors so far, and how many of them anyone was told of.
    errors: u64,
    told: u64,
    /// Errors told to the control plane's own description.
    reported_to_backend: u64,
    /// How often a request was made to fail, but for want of space where that is waited for.
    pub(super) faults: u64,
    /// How often there was no space for one that may wait for it.
    pub(super) space_faults: u64,
    /// There is no space at all.
    full: bool,
    /// What deadlines are measured by, and how far it is.
    clock: Clock,
    pub(super) now_ns: u64,
    /// Power is off: calls are answered and do nothing.
    pub(super) dead: bool,
    /// A full wait moves the host on rather than give up.
    pub(super) blocking: bool,
    /// What the engine did that no kernel would have it do.
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
}

impl Host {
    pub(super) fn new(plan: &Plan, clock: Clock, random: Random, traced: bool) -> Self {
        Self {
            plan: plan.clone(),
            random,
            media: Media::new(plan.sectors),
            rings: Vec::new(),
            calls: Vec::new(),
            errors: 0,
            told: 0,
            reported_to_backend: 0,
            faults: 0,
            space_faults: 0,
            full: false,
            clock,
            now_ns: 0,
            dead: false,
            blocking: false,
            violation: None,
            trace: traced.then(Vec::new),
        }
    }

    /// Adds a line to the trace.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// Whether data was lost by a failed write-back.
    pub(super) fn lost_data(&self) -> bool {
        self.errors > 0
    }

    /// Opens the file again and makes a ring for it. An error nobody was told of is news to it.
    pub(super) fn open_ring(&mut self, depth: u16) -> usize {
        let capacity = (usize::from(depth) + 2).next_power_of_two();
        let kicked = self.random.coin();
        self.rings.push(Ring { capacity, kicked, reported: self.told, ..Ring::default() });
        self.rings.len() - 1
    }

    /// The ring made last.
    pub(super) fn last_ring(&self) -> usize {
        self.rings.len() - 1
    }

    pub(super) fn close_ring(&mut self, ring: usize) {
        if self.calls.iter().any(|call| call.ring == ring) {
            self.violate(|| "an engine was dropped with calls in flight".into());
        }
        self.rings[ring].poll = None;
        self.rings[ring].deadline_ns = None;
    }

    fn violate(&mut self, what: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(what);
    }

    pub(super) fn push(&mut self, ring: usize, entry: Entry) -> bool {
        let state = &self.rings[ring];
        let same = |user_data| user_data == entry.user_data;
        let twice = state.submitted.iter().any(|other| same(other.user_data))
            || self.calls.iter().any(|call| call.ring == ring && same(call.entry.user_data));
        if twice {
            self.violate(|| format!("two entries in flight for {:#x}", entry.user_data));
        }
        let state = &mut self.rings[ring];
        let room = state.submitted.len() < state.capacity;
        if room {
            state.submitted.push_back(entry);
        }
        room
    }

    pub(super) fn refuse(&mut self, why: String) {
        self.violate(|| why);
    }

    pub(super) fn has_unsubmitted(&self, ring: usize) -> bool {
        !self.rings[ring].submitted.is_empty()
    }

    pub(super) fn wants_entering(&self, ring: usize) -> bool {
        let ring = &self.rings[ring];
        !ring.submitted.is_empty() || !ring.deferred.is_empty()
    }

    /// Whether a wait on the ring would end.
    pub(super) fn is_readable(&self, ring: usize) -> bool {
        let ring = &self.rings[ring];
        let has_timed_out = ring.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= self.now_ns);
        !ring.answers.is_empty() || !ring.deferred.is_empty() || has_timed_out
    }

    pub(super) fn next_result(&mut self, ring: usize) -> Option<RingResult> {
        self.rings[ring].answers.pop_front()
    }

    /// Enters the kernel; an errno for what a real one would refuse, `ETIME` where it would sleep.
    pub(super) fn enter(
        &mut self,
        ring: usize,
        want: usize,
        timeout: Option<Duration>,
    ) -> Result<(), i32> {
        self.rings[ring].deadline_ns = None;
        if !self.dead && self.random.chance(self.plan.odds.busy) {
            self.post_deferred(ring);
            return Err(if self.random.coin() { errno::BUSY } else { errno::INTR });
        }
        let waiting = self.rings[ring].submitted.len();
        let partial = waiting > 0 && self.random.chance(self.plan.odds.partial_submit);
        let taken = if partial { self.random.within(1, waiting) } else { waiting };
        for _ in 0..taken {
            if let Some(entry) = self.rings[ring].submitted.pop_front() {
                self.take(ring, entry);
            }
        }
        self.post_deferred(ring);
        if taken < waiting {
            return Ok(());
        }
        for _ in 0..100_000 {
            if self.rings[ring].answers.len() >= want {
                return Ok(());
            }
            if !self.blocking {
                let timeout_ns = timeout.map(|timeout| u64::try_from(timeout.as_nanos()).unwrap());
                self.rings[ring].deadline_ns =
                    timeout_ns.map(|timeout_ns| self.now_ns + timeout_ns);
                return Err(errno::TIME);
            }
            self.step();
            self.post_deferred(ring);
        }
        self.violate(|| "the engine waits for what will never come".into());
        Err(errno::TIME)
    }

    fn post_deferred(&mut self, ring: usize) {
        let ring = &mut self.rings[ring];
        ring.answers.append(&mut ring.deferred);
    }

    fn post(&mut self, ring: usize, answer: RingResult) {
        let state = &mut self.rings[ring];
        if self.plan.deferred {
            state.deferred.push_back(answer);
        } else {
            state.answers.push_back(answer);
        }
    }

    fn take(&mut self, ring: usize, entry: Entry) {
        if entry.ask == Ask::Poll {
            self.rings[ring].poll = Some(entry.user_data);
            if self.rings[ring].kicked {
                self.kick(ring);
            }
            return;
        }
        if !is_tag(entry.user_data) {
            self.violate(|| format!("{:#x} is no tag", entry.user_data));
        }
        if self.dead {
            let answer =
                RingResult { user_data: entry.user_data, result: -errno::CANCELED, more: false };
            return self.post(ring, answer);
        }
        let fate = self.draw_fate(&entry);
        let in_any_order = self.plan.mode.is_direct();
        let call =
            Call::new(ring, entry, fate, in_any_order, self.media.next_version(), &mut self.random);
        self.note(|| format!("  host takes {call}"));
        self.calls.push(call);
    }

    /// The driver signals the kick.
    pub(super) fn kick(&mut self, ring: usize) {
        self.rings[ring].kicked = true;
        if let Some(user_data) = self.rings[ring].poll {
            let more = !self.random.chance(self.plan.odds.poll_ends);
            if !more {
                self.rings[ring].poll = None;
            }
            self.post(ring, RingResult { user_data, result: 1, more });
        }
    }

    fn supports(&self, ask: Ask) -> bool {
        let Plan { block_device, punches, zeroes, discards, .. } = self.plan;
        match ask {
            Ask::PunchHole => punches,
            Ask::ZeroRange => zeroes,
            Ask::Discard => block_device && discards,
            _ => true,
        }
    }

    fn draw_fate(&mut self, entry: &Entry) -> Fate {
        let odds = self.plan.odds;
        let random = &mut self.random;
        let alignment = 512 * self.plan.host_block as u64;
        let end = entry.at.checked_add(entry.total());
        if end.is_none_or(|end| end > 512 * self.plan.sectors as u64) {
            self.violate(|| format!("{entry:?} reaches beyond the disk"));
            return Fate::Refuse(errno::INVAL);
        }
        let is_transfer = matches!(entry.ask, Ask::Read | Ask::Write(_));
        // A device zeroes and discards whole blocks of its own; a file, any range.
        let picky = if is_transfer { self.plan.mode.is_direct() } else { self.plan.block_device };
        if picky && !entry.is_aligned(alignment) {
            return Fate::Refuse(errno::INVAL);
        }
        if random.chance(odds.interrupted) {
            return Fate::Refuse(errno::INTR);
        }
        if !entry.may_block && random.chance(odds.would_block) {
            return Fate::Refuse(errno::AGAIN);
        }
        let is_refused = self.plan.is_volume() && entry.ask == Ask::Discard && !entry.may_block;
        if is_refused || !self.supports(entry.ask) {
            return Fate::Refuse(errno::OPNOTSUPP);
        }
        let random = &mut self.random;
        let total = usize::try_from(entry.total()).unwrap();
        if entry.ask == Ask::Sync {
            return if random.chance(odds.sync_error) { Fate::LoseAndFail } else { Fate::Finish };
        }
        if entry.ask == Ask::Write(true) && random.chance(odds.sync_error) {
            // Past the page cache it stands for itself alone, as with FUA.
            let part = random.below(total / 512 + 1);
            let direct = self.plan.mode.is_direct();
            return if direct { Fate::Fail(errno::IO, part) } else { Fate::LoseAndFail };
        }
        if random.chance(odds.io_error) {
            return Fate::Fail(errno::IO, random.below(total / 512 + 1));
        }
        let takes_space = !matches!(entry.ask, Ask::Read | Ask::Discard | Ask::PunchHole);
        if takes_space && (self.full || random.chance(odds.no_space)) {
            return Fate::Fail(errno::NOSPC, random.below(total / 512 + 1));
        }
        if is_transfer && total > 1 && random.chance(odds.short) {
            let whole =
                if self.plan.mode.is_direct() { alignment } else { 512 * self.plan.block as u64 };
            let unit = if self.plan.ragged { 1 } else { usize::try_from(whole).unwrap() };
            // A transfer that starts within a sector ends at a sector's end, or anywhere.
            let lead = usize::try_from(entry.at).unwrap() % unit;
            let most = (total - 1 + lead) / unit;
            if most > 0 {
                return Fate::Short(random.within(1, most) * unit - lead);
            }
        }
        Fate::Finish
    }

    /// Does something that a kernel may do at any time. `false` if there was nothing to do.
    pub(super) fn step(&mut self) -> bool {
        if !self.plan.mode.is_direct() && self.random.chance(self.plan.odds.lost_write) {
            self.lose_some();
        }
        if self.calls.is_empty() {
            return false;
        }
        let at = self.random.below(self.calls.len());
        self.work(at);
        true
    }

    /// Runs out of space, or has some again.
    pub(super) fn turn_full(&mut self) {
        self.full = !self.full;
        let full = self.full;
        self.note(|| format!("  host has {} space", if full { "no" } else { "some" }));
    }

    /// Whether an engine sleeps with a timeout.
    pub(super) fn has_timeout(&self) -> bool {
        self.rings.iter().any(|ring| ring.deadline_ns.is_some())
    }

    /// Advances the clock: a moment, or with `until_timeout` to the next timeout of an engine.
    pub(super) fn pass_time(&mut self, until_timeout: bool) {
        let mut by_ns = self.random.within(1, 20) as u64 * 1_000_000;
        if until_timeout {
            let next_ns = self.rings.iter().filter_map(|ring| ring.deadline_ns).min();
            by_ns += next_ns.map_or(0, |next_ns| next_ns.saturating_sub(self.now_ns));
        }
        self.now_ns += by_ns;
        self.clock.advance(Duration::from_nanos(by_ns));
        let now_ns = self.now_ns;
        self.note(|| format!("  time is {} ms", now_ns / 1_000_000));
    }

    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Moves some of a call's sectors, or answers it.
    fn work(&mut self, at: usize) {
        let budget = self.random.within(1, 6);
        for _ in 0..budget {
            let Some(chunk) = self.calls[at].next_chunk() else {
                return self.answer(at);
            };
            let call = &self.calls[at];
            let span = chunk.offset..chunk.offset + chunk.len;
            let mut bytes = [0; 512];
            match call.entry.ask {
                Ask::Read => call.entry.copy_to(chunk.at, &self.media.visible(chunk.sector)[span]),
                Ask::Write(_) => {
                    call.entry.copy_from(chunk.at, &mut bytes[..chunk.len]);
                    self.media.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                }
                Ask::PunchHole | Ask::ZeroRange => {
                    self.media.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                }
                Ask::Discard if self.plan.is_volume() => {
                    let granule = chunk.sector / self.plan.granule() * self.plan.granule();
                    let first = 512 * granule as u64;
                    let last = first + 512 * self.plan.granule() as u64;
                    let entry = &self.calls[at].entry;
                    if entry.at <= first && last <= entry.at + entry.total() {
                        self.media.free(chunk.sector);
                    }
                }
                Ask::Discard => {
                    if self.random.coin() {
                        self.media.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                    }
                }
                Ask::Sync | Ask::Poll => {}
            }
        }
    }

    fn answer(&mut self, at: usize) {
        let call = self.calls.swap_remove(at);
        let result = match call.fate {
            Fate::Refuse(errno) => -errno,
            Fate::Fail(errno, _) => {
                // What a durable write through the page cache hears of a device may be of other
                // writes.
                let own =
                    !call.is_durable() || !self.plan.block_device || self.plan.mode.is_direct();
                if errno == errno::NOSPC && own && self.plan.hold.is_some() {
                    self.space_faults += 1;
                } else {
                    self.faults += 1;
                }
                -errno
            }
            Fate::LoseAndFail => {
                self.faults += 1;
                self.lose_some();
                self.errors += 1;
                self.tell(call.ring);
                -errno::IO
            }
            Fate::Finish | Fate::Short(_) => self.conclude(&call),
        };
        self.note(|| format!("  host answers {call} with {result}"));
        let user_data = call.entry.user_data;
        self.post(call.ring, RingResult { user_data, result, more: false });
    }

    /// Makes durable what a successful call promises, and tells its result.
    fn conclude(&mut self, call: &Call) -> i32 {
        let moved = i32::try_from(call.moved()).unwrap();
        match call.entry.ask {
            Ask::Sync => {
                self.media.write_back_all(call.version);
                if self.tell(call.ring) { -errno::IO } else { 0 }
            }
            Ask::Write(true) => {
                for sector in call.sectors_moved() {
                    self.media.write_back(sector, u64::MAX);
                }
                let hears = !self.plan.mode.is_direct() && self.tell(call.ring);
                if hears { -errno::IO } else { moved }
            }
            Ask::Write(false) | Ask::Read => moved,
            Ask::PunchHole | Ask::ZeroRange | Ask::Discard | Ask::Poll => 0,
        }
    }

    /// Reports errors to a ring's description; whether there were any it had not heard of.
    fn tell(&mut self, ring: usize) -> bool {
        self.told = self.errors;
        let reported = &mut self.rings[ring].reported;
        let news = *reported < self.errors;
        *reported = self.errors;
        if news {
            self.faults += 1;
        }
        news
    }

    /// Loses dirty sectors, and counts that as an error if there are any. Past the page cache only
    /// those that no durable write in flight answers for.
    fn lose_some(&mut self) {
        let mut candidates = self.media.dirty();
        if self.plan.mode.is_direct() {
            let owned = |sector: &usize| {
                self.calls.iter().any(|call| call.is_durable() && call.touches(*sector))
            };
            candidates.retain(|sector| !owned(sector));
        }
        candidates.retain(|_| self.random.coin());
        if candidates.is_empty() {
            return;
        }
        self.errors += 1;
        for sector in &candidates {
            self.media.lose(*sector);
        }
        self.note(|| format!("  host loses what is dirty of sectors {candidates:?}"));
    }

    /// Writes something back, or evicts something lost.
    pub(super) fn write_back(&mut self) {
        let dirty = self.media.dirty();
        if dirty.is_empty() || self.random.chance(200) {
            let sector = self.random.below(self.plan.sectors);
            self.media.evict(sector);
            return;
        }
        for _ in 0..self.random.within(1, 4) {
            let sector = dirty[self.random.below(dirty.len())];
            self.media.write_back_some(sector, &mut self.random);
        }
    }

    /// `fdatasync` on the control plane's own description.
    pub(super) fn sync_now(&mut self) -> Result<(), i32> {
        if self.random.chance(self.plan.odds.sync_error) {
            self.lose_some();
            self.errors += 1;
        }
        self.media.write_back_all(u64::MAX);
        self.told = self.errors;
        let news = self.reported_to_backend < self.errors;
        self.reported_to_backend = self.errors;
        self.note(|| {
            format!("  host syncs for the control plane: {}", if news { "EIO" } else { "ok" })
        });
        if news {
            self.faults += 1;
            return Err(errno::IO);
        }
        Ok(())
    }

    /// Cuts the power.
    pub(super) fn cut(&mut self) {
        self.dead = true;
        let calls = std::mem::take(&mut self.calls);
        for call in calls {
            let user_data = call.entry.user_data;
            self.post(call.ring, RingResult { user_data, result: -errno::CANCELED, more: false });
        }
        self.media.cut(&mut self.random);
    }
}
