//! One schedule, played: a device with its workers, their drivers and the host take steps in random
//! order until it ends as planned, and the oracle looks at everything the driver sees.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use block::simulation::Clock;
use block::{Backend, CacheMode};
use devices::GuestMemory;
use devices::storage::{Protocol, QueueWorker};
use devices::virtio::{Block, DeviceStatus, FaultReporter, Interrupt, VirtioDevice};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use driver::{feature, kind, status};

use super::call::errno;
use super::content::{SECTOR, Value};
use super::disk::{SharedHost, SimDisk};
use super::guest::{self, Asked, Guest, MEMORY_BYTES, MOST_SECTORS, Returned, Shape};
use super::host::Host;
use super::oracle::{Effect, Oracle, Time};
use super::plan::{Discarded, Ending, Plan};
use super::random::Random;

const SERIAL: &str = "simulated";
/// Offset of `writeback` in the configuration (Virtio 1.2 §5.2.4).
const WRITEBACK: u64 = 32;
/// More steps than any schedule needs.
const MOST_STEPS: usize = 100_000;
/// More than anything takes that waits for no space.
const SLOW: Duration = Duration::from_secs(2);
/// How long after its deadline a held write is retried at the latest.
const LATE: Duration = Duration::from_secs(1);

/// What schedules share to be fast; none of it carries anything from one to the next.
pub(super) struct Bench {
    memory: GuestMemory,
    null: File,
}

impl Bench {
    pub(super) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        Self { memory, null: File::open("/dev/null").unwrap() }
    }
}

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests the driver made.
    pub requests: u64,
    /// Requests that came back with an error.
    pub failed: u64,
    /// Steps of all parties.
    pub steps: u64,
}

impl Counts {
    /// Adds those of another schedule.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.steps += other.steps;
    }
}

/// Where a worker is in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// About to do a round.
    Round,
    /// About to wait.
    Wait,
    /// Waiting.
    Asleep,
}

/// A worker with the ring its engine uses.
struct Running<P: Protocol> {
    worker: QueueWorker<P>,
    /// Other engines' workers signal it as well.
    kick: Arc<EventFd>,
    ring: usize,
    phase: Phase,
}

/// See the module's documentation.
struct World<P: Protocol> {
    plan: Plan,
    random: Random,
    host: SharedHost,
    disk: Arc<SimDisk>,
    block: Block,
    memory: GuestMemory,
    workers: Vec<Running<P>>,
    guests: Vec<Guest>,
    oracle: Oracle,
    now: Time,
    left: usize,
    resets_left: usize,
    /// Since when each completed write is promised to be durable.
    cache_off_since: Option<Time>,
    /// The device's status register.
    status: DeviceStatus,
    counts: Counts,
}

/// Plays a schedule. `Err` says what was wrong, and the trace holds what happened if it was asked
/// for.
pub(super) fn play(
    bench: &Bench,
    plan: &Plan,
    random: &mut Random,
    traced: bool,
) -> (Result<Counts, String>, Vec<String>) {
    let clock = Clock::simulated();
    let host = SharedHost::new(Host::new(plan, clock.clone(), random.fork(), traced));
    let null = bench.null.try_clone().unwrap();
    let disk = Arc::new(SimDisk::new(plan, clock, host.clone(), null));
    let backend: Arc<dyn Backend> = Arc::clone(&disk) as _;
    let block = Block::new("sim", SERIAL, plan.queues, backend);
    let make = |block: &Block, active, faults| block.worker(active, faults);
    let mut world = World {
        random: random.fork(),
        host: host.clone(),
        disk,
        block,
        memory: bench.memory.clone(),
        workers: Vec::new(),
        guests: Vec::new(),
        oracle: Oracle::new(plan.sectors, plan.ragged),
        now: 1,
        left: plan.operations,
        resets_left: 2,
        cache_off_since: None,
        status: DeviceStatus::driver_ok(),
        counts: Counts::default(),
        plan: plan.clone(),
    };
    let result = world.bring_up(make).and_then(|()| world.run(make));
    if result.is_err() {
        world.host.lock().cut();
        world.stop_workers();
    }
    drop(world);
    let trace = host.lock().trace.take().unwrap_or_default();
    (result, trace)
}

impl<P: Protocol> World<P> {
    /// The driver negotiates, lays out its queues and starts the device.
    fn bring_up<E: std::fmt::Display>(
        &mut self,
        make: impl Fn(&Block, devices::virtio::ActiveQueue, FaultReporter) -> Result<QueueWorker<P>, E>,
    ) -> Result<(), String> {
        let offered = self.block.features()
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1;
        let mut features = offered;
        for (wanted, bit) in [
            (self.plan.event_idx, feature::EVENT_IDX),
            (self.plan.indirect, feature::INDIRECT_DESC),
            (self.plan.flush, feature::BLK_FLUSH),
        ] {
            if !wanted {
                features &= !bit;
            }
        }
        self.block.negotiated(features);
        let has_cache = self.plan.mode.has_write_cache() && self.plan.flush;
        self.cache_off_since = (!has_cache).then_some(self.now);
        for index in 0..self.plan.queues {
            let (guest, active) = Guest::new(&self.memory, index, self.plan.queue_size, features);
            let faults = FaultReporter::new(self.status.clone(), Interrupt::unassigned());
            let kick = Arc::clone(&active.kick);
            let worker =
                make(&self.block, active, faults).map_err(|error| format!("no worker: {error}"))?;
            let ring = self.host.lock().last_ring();
            self.workers.push(Running { worker, kick, ring, phase: Phase::Round });
            self.guests.push(guest);
        }
        Ok(())
    }

    fn run<E: std::fmt::Display>(
        &mut self,
        make: impl Fn(&Block, devices::virtio::ActiveQueue, FaultReporter) -> Result<QueueWorker<P>, E>,
    ) -> Result<Counts, String> {
        let cut_at = match self.plan.ending {
            Ending::Cut => self.plan.cut_at,
            Ending::Quiet | Ending::Close => usize::MAX,
        };
        for step in 0.. {
            if step == cut_at {
                break;
            }
            if step > MOST_STEPS {
                return Err("no end: the schedule goes on and on".into());
            }
            let quiet = self.left == 0 && self.guests.iter().all(|guest| guest.outstanding() == 0);
            if quiet && self.plan.ending != Ending::Cut {
                break;
            }
            self.counts.steps += 1;
            if self.step()? == Event::Reset {
                self.reset();
                self.bring_up(&make)?;
            }
            self.check_bystanders()?;
        }
        if self.plan.ending == Ending::Close {
            self.close()?;
        }
        self.cut()?;
        Ok(self.counts)
    }

    /// Picks who goes next, and lets them.
    fn step(&mut self) -> Result<Event, String> {
        let weights = self.plan.weights;
        let ready = |yes: bool, weight: u32| if yes { weight } else { 0 };
        let workers: Vec<usize> =
            (0..self.workers.len()).filter(|at| self.can_run(&self.workers[*at])).collect();
        // A driver that polls finds out by itself; when there is nothing left to ask it sleeps.
        let wakes = |guest: &Guest| guest.interrupted || guest.polls && guest.outstanding() > 0;
        let guests: Vec<usize> =
            (0..self.guests.len()).filter(|at| wakes(&self.guests[*at])).collect();
        let rooms: Vec<usize> =
            (0..self.guests.len()).filter(|at| self.guests[*at].has_room()).collect();
        let (busy, timed) = {
            let host = self.host.lock();
            (host.has_calls(), host.has_timeout())
        };
        let submits = self.left > 0 && !rooms.is_empty();
        let idle = !(submits || busy) && workers.is_empty() && guests.is_empty();
        if idle && !timed {
            let waiting: usize = self.guests.iter().map(Guest::outstanding).sum();
            if waiting > 0 || self.left > 0 {
                return Err(format!("stuck: {waiting} requests never come back"));
            }
        }
        let weights = [
            ready(submits, weights.submit),
            ready(!guests.is_empty(), weights.look),
            ready(!workers.is_empty(), weights.worker),
            ready(busy, weights.host),
            weights.write_back,
            weights.toggle,
            ready(self.resets_left > 0 && self.left > 0, weights.reset),
            ready(timed, if idle { 20 } else { 1 }),
            weights.space,
        ];
        match self.random.weighted(&weights) {
            Some(0) => {
                let at = self.random.pick(&rooms);
                self.submit(at);
            }
            Some(1) => {
                let at = self.random.pick(&guests);
                self.look(at)?;
            }
            Some(2) => {
                let at = self.random.pick(&workers);
                self.turn(at)?;
            }
            Some(3) => {
                self.host.lock().step();
            }
            Some(4) => self.host.lock().write_back(),
            Some(5) => self.toggle()?,
            Some(6) if self.random.chance(100) => return Ok(Event::Reset),
            Some(7) => self.host.lock().pass_time(idle),
            Some(8) => self.host.lock().turn_full(),
            _ => {}
        }
        Ok(Event::Step)
    }

    fn can_run(&self, running: &Running<P>) -> bool {
        running.phase != Phase::Asleep || self.host.lock().is_readable(running.ring)
    }

    /// One turn of a worker's loop.
    fn turn(&mut self, at: usize) -> Result<(), String> {
        let running = &mut self.workers[at];
        running.phase = if running.phase == Phase::Round {
            if running.worker.round() { Phase::Wait } else { Phase::Round }
        } else {
            match running.worker.wait() {
                Ok(()) => Phase::Round,
                Err(error) if error.raw_os_error() == Some(errno::TIME) => Phase::Asleep,
                Err(error) => return Err(format!("the engine gave up: {error}")),
            }
        };
        self.guests[at].listen();
        self.pass_kicks_on();
        Ok(())
    }

    /// An engine that releases blocks or memory kicks those that wait for them.
    fn pass_kicks_on(&self) {
        for running in &self.workers {
            if running.kick.read().is_ok() {
                self.host.lock().kick(running.ring);
            }
        }
    }

    /// A driver offers one request or a few, and shows them at once.
    fn submit(&mut self, at: usize) {
        for _ in 0..self.random.within(1, 3).min(self.left) {
            if !self.guests[at].has_room() {
                break;
            }
            self.left -= 1;
            self.counts.requests += 1;
            let (shape, asked) = self.draw_request();
            self.host.lock().note(|| describe(at, &shape, &asked));
            let now_ns = self.host.lock().now_ns;
            self.guests[at].offer(&shape, asked, now_ns, &mut self.random);
        }
        if self.guests[at].publish() {
            self.host.lock().kick(self.workers[at].ring);
        }
        self.now += 1;
    }

    fn draw_request(&mut self) -> (Shape, Asked) {
        let block = self.plan.block;
        let blocks = self.plan.sectors / block;
        let first = self.random.below(blocks);
        let most = (blocks - first).min(MOST_SECTORS / block);
        let (first, count) = (first * block, self.random.within(1, most) * block);
        let flush = if self.plan.flush { 25 } else { 0 };
        match self.random.weighted(&[45, 30, flush, 7, 10, 1]) {
            Some(0) => {
                let number = u32::try_from(self.oracle.next_id()).unwrap();
                let bytes = |sector| Value::Written(number).bytes(sector);
                let out = (first..first + count).flat_map(bytes).collect();
                let asked = self.change(Effect::Put(Value::Written(number)), first, count);
                (guest::write(first, out), asked)
            }
            Some(1) => {
                let reading = self.oracle.offer_read(first, count, self.now);
                (guest::bare(kind::IN, first, count * SECTOR), Asked::Read { first, reading })
            }
            Some(2) => (guest::bare(kind::FLUSH, 0, 0), Asked::Flush { offered: self.now }),
            Some(3) => {
                let asked = match self.plan.discard_effect(first, count) {
                    Discarded::Anything => self.change(Effect::Anything, first, count),
                    Discarded::Zero => self.change(Effect::Put(Value::Zero), first, count),
                    Discarded::Untouched => self.change(Effect::Anything, first, 0),
                };
                (guest::range(kind::DISCARD, first, count, 0), asked)
            }
            Some(4) => {
                let asked = self.change(Effect::Put(Value::Zero), first, count);
                let unmap = u32::from(self.random.coin());
                (guest::range(kind::WRITE_ZEROES, first, count, unmap), asked)
            }
            _ => (guest::bare(kind::GET_ID, 0, 20), Asked::Id),
        }
    }

    fn change(&mut self, effect: Effect, first: usize, count: usize) -> Asked {
        let op = self.oracle.offer(effect, first, count, self.now);
        Asked::Change { op, offered: self.now }
    }

    /// A driver takes what came back.
    fn look(&mut self, at: usize) -> Result<(), String> {
        if self.random.chance(100) {
            self.guests[at].polls = !self.guests[at].polls;
        }
        self.now += 1;
        for returned in self.guests[at].look()? {
            self.judge(at, returned)?;
        }
        self.now += 1;
        Ok(())
    }

    /// Looks at what came of a request.
    fn judge(&mut self, at: usize, returned: Returned) -> Result<(), String> {
        let Returned { asked, since_ns, status, data } = returned;
        let succeeded = status == 0;
        let (faults, lost_data, took_ns) = {
            let mut host = self.host.lock();
            host.note(|| format!("driver {at} sees status {status} of {asked}"));
            (host.faults, host.lost_data(), host.now_ns - since_ns)
        };
        self.counts.failed += u64::from(!succeeded);
        if !succeeded && faults == 0 && !self.may_lack_space(&asked, took_ns) {
            return Err(format!("{asked} fails with status {status} although nothing went wrong"));
        }
        self.check_patience(&asked, took_ns)?;
        match asked {
            Asked::Read { first, reading } if succeeded => {
                for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
                    self.oracle.check_read(&reading, sector, bytes, lost_data)?;
                }
            }
            Asked::Change { op, offered } => {
                let durable = self.cache_off_since.is_some_and(|since| since <= offered);
                self.oracle.complete(op, succeeded, durable, self.now);
            }
            Asked::Flush { .. } if self.plan.mode == CacheMode::Unsafe => {}
            Asked::Flush { offered } if succeeded => self.oracle.flushed(offered)?,
            Asked::Flush { .. } if self.plan.mode.is_direct() && !lost_data => {
                return Err(format!("{asked} fails although each fdatasync has succeeded"));
            }
            Asked::Flush { .. } => self.oracle.flush_failed(self.now),
            Asked::Id if succeeded && !data.starts_with(SERIAL.as_bytes()) => {
                return Err("the device does not know its own name".into());
            }
            Asked::Read { .. } | Asked::Id => {}
        }
        Ok(())
    }

    /// Whether it has waited for space for as long as it may.
    fn may_lack_space(&self, asked: &Asked, took_ns: u64) -> bool {
        let has_waited = |deadline: Duration| u128::from(took_ns) >= deadline.as_nanos();
        self.host.lock().space_faults > 0
            && matches!(asked, Asked::Change { .. })
            && self.plan.hold.is_some_and(has_waited)
    }

    /// Only what changes the disk waits for space, and that only until its deadline.
    fn check_patience(&self, asked: &Asked, took_ns: u64) -> Result<(), String> {
        let most = match (asked, self.plan.hold) {
            (Asked::Change { .. }, Some(deadline)) => deadline + LATE,
            _ => SLOW,
        };
        if u128::from(took_ns) > most.as_nanos() {
            return Err(format!("{asked} took {} ms", took_ns / 1_000_000));
        }
        Ok(())
    }

    /// The driver switches the write cache.
    fn toggle(&mut self) -> Result<(), String> {
        let on = self.random.coin();
        self.now += 1;
        self.host
            .lock()
            .note(|| format!("driver switches the write cache {}", if on { "on" } else { "off" }));
        self.block.write_config(WRITEBACK, &[u8::from(on)]);
        let mut writeback = [0];
        self.block.read_config(WRITEBACK, &mut writeback);
        if writeback != [u8::from(on)] && self.host.lock().faults == 0 {
            return Err("the write cache is not switched although nothing went wrong".into());
        }
        if writeback == [0] {
            self.cache_off_since.get_or_insert(self.now);
            // What completed before is promised to be durable after the switch.
            self.oracle.everything_is_durable(self.now);
        } else {
            self.cache_off_since = None;
        }
        self.now += 1;
        Ok(())
    }

    /// The driver resets the device.
    fn reset(&mut self) {
        self.resets_left -= 1;
        self.host.lock().note(|| "driver resets the device".into());
        self.stop_workers();
        self.now += 1;
        for guest in std::mem::take(&mut self.guests) {
            for asked in guest.give_up() {
                if let Asked::Change { op, .. } = asked {
                    self.oracle.complete(op, false, false, self.now);
                }
            }
        }
        self.block.reset();
        self.now += 1;
    }

    /// Ends the workers; their engines wait for what is in flight.
    fn stop_workers(&mut self) {
        self.host.lock().blocking = true;
        self.workers.clear();
        self.host.lock().blocking = false;
    }

    /// The machine ends in good order.
    fn close(&mut self) -> Result<(), String> {
        self.host.lock().note(|| "the machine ends".into());
        self.stop_workers();
        self.now += 1;
        match self.block.close() {
            Ok(()) => self.oracle.flushed(self.now),
            Err(_) if self.host.lock().faults > 0 => Ok(()),
            Err(error) => Err(format!("the device cannot be closed: {error}")),
        }
    }

    /// Cuts the power and looks at the disk.
    fn cut(&mut self) -> Result<(), String> {
        self.host.lock().note(|| "power is cut".into());
        self.host.lock().cut();
        self.stop_workers();
        let host = self.host.lock();
        for sector in 0..self.plan.sectors {
            self.oracle.check_cut(sector, host.media.visible(sector))?;
        }
        host.violation.clone().map_or(Ok(()), Err)
    }

    /// What nobody asked about must be right all the same.
    fn check_bystanders(&self) -> Result<(), String> {
        if self.status.get() & status::NEEDS_RESET != 0 {
            return Err("the device asks for a reset".into());
        }
        let outstanding: usize = self.guests.iter().map(Guest::outstanding).sum();
        let held = self.disk.status().enospc_hold.map_or(0, |held| held.requests as usize);
        if held > outstanding {
            return Err(format!("{held} requests are held, of {outstanding}"));
        }
        self.host.lock().violation.clone().map_or(Ok(()), Err)
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Step,
    Reset,
}

fn describe(at: usize, shape: &Shape, asked: &Asked) -> String {
    let what = match shape.kind {
        kind::IN => "reads",
        kind::OUT => "writes",
        kind::FLUSH => "flushes",
        kind::DISCARD => "discards",
        kind::WRITE_ZEROES => "zeroes",
        _ => "asks the name",
    };
    let Shape { sector, sectors, .. } = shape;
    format!("driver {at} {what} sector {sector} +{sectors}: {asked}")
}
