//! The steps of a schedule: drivers submit and reap, workers run, the host moves, time passes.

use driver::kind;

use super::{Phase, Simulation, StepResult};
use crate::block_request::{self, Expectation, Request};
use crate::call::errno;
use crate::content::{SECTOR, Value};
use crate::expected::Expected;
use crate::initiator::Initiator;
use crate::oracle::Effect;
use crate::plan::DiscardEffect;
use crate::queue_driver::{MAX_SECTORS, QueueDriver};

/// Offset of `writeback` in the configuration (Virtio 1.2 §5.2.4).
const WRITEBACK: u64 = 32;

/// Indices of the parties that can take a step.
struct Parties {
    workers: Vec<usize>,
    drivers: Vec<usize>,
    /// Drivers with room for a request.
    with_room: Vec<usize>,
    initiators: Vec<usize>,
    /// Initiators with room for a compare-and-write.
    comparing: Vec<usize>,
}

fn indices<T>(all: &[T], is_ready: impl Fn(&T) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|at| is_ready(&all[*at])).collect()
}

impl Simulation<'_> {
    /// Takes one step of a party drawn by weight.
    pub(super) fn step(&mut self) -> Result<StepResult, String> {
        let weights = self.plan.weights;
        let ready = |yes: bool, weight: u32| if yes { weight } else { 0 };
        let Parties { workers, drivers, with_room, initiators, comparing } = self.parties();
        let (busy, timer) = {
            let host = self.host.lock();
            (host.has_calls(), host.has_timeout())
        };
        let submits = self.left > 0 && !with_room.is_empty();
        let manages = self.manages_tasks();
        let idle = !(submits || busy || manages)
            && [&workers, &drivers, &initiators].iter().all(|ready| ready.is_empty());
        if idle && !timer && !self.is_complete() {
            let waiting = self.outstanding();
            return Err(format!("deadlock: {waiting} requests never complete"));
        }
        let weights = [
            ready(submits, weights.submit),
            ready(!drivers.is_empty(), weights.reap),
            ready(!workers.is_empty(), weights.worker),
            ready(busy, weights.host),
            weights.write_back,
            weights.toggle,
            ready(self.resets_left > 0 && self.left > 0, weights.reset),
            ready(timer, if idle { 20 } else { 1 }),
            weights.space,
            ready(self.kills_left > 0, weights.kill),
            ready(self.left > 0 && !comparing.is_empty(), weights.compare),
            ready(!initiators.is_empty(), weights.worker),
            ready(self.may_start_function(), weights.function),
            ready(manages, weights.worker),
        ];
        match self.random.weighted(&weights) {
            Some(0) => {
                let at = self.random.pick(&with_room);
                self.submit(at);
            }
            Some(1) => {
                let at = self.random.pick(&drivers);
                self.reap(at)?;
            }
            Some(2) => {
                let at = self.random.pick(&workers);
                self.run_worker(at)?;
            }
            Some(3) => {
                self.host.lock().step();
            }
            Some(4) => self.host.lock().write_back(),
            Some(5) => self.toggle()?,
            Some(6) if self.random.chance(100) => return Ok(StepResult::Reset),
            Some(7) => self.host.lock().advance_time(idle),
            Some(8) => self.host.lock().toggle_full(),
            Some(9) if self.random.chance(100) => return Ok(StepResult::Kill),
            Some(10) => self.submit_compare(&comparing),
            Some(11) => self.run_initiator(&initiators)?,
            Some(12) => self.start_function(),
            Some(13) => self.manage_tasks()?,
            _ => {}
        }
        Ok(StepResult::Continue)
    }

    /// The parties that can take a step.
    fn parties(&self) -> Parties {
        // A driver runs on an interrupt, or polls while it has requests outstanding.
        let wakes = |driver: &QueueDriver<Expected>| {
            driver.interrupted || driver.polling && driver.outstanding() > 0
        };
        let awake = |is_asleep: bool, ring: usize| !is_asleep || self.host.lock().is_readable(ring);
        Parties {
            workers: indices(&self.workers, |worker| {
                awake(worker.phase == Phase::Asleep, worker.ring)
            }),
            drivers: indices(&self.drivers, wakes),
            with_room: indices(&self.drivers, QueueDriver::has_room),
            initiators: indices(&self.initiators, |initiator| {
                awake(initiator.is_asleep, initiator.ring)
            }),
            comparing: indices(&self.initiators, Initiator::has_room),
        }
    }

    /// Requests in flight.
    pub(super) fn outstanding(&self) -> usize {
        let drivers = self.drivers.iter().map(QueueDriver::outstanding);
        let functions = self.scsi.functions_in_flight();
        drivers.chain(self.initiators.iter().map(Initiator::outstanding)).sum::<usize>() + functions
    }

    /// Whether all requests were submitted and have completed.
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0 && self.outstanding() == 0
    }

    /// Runs one phase of a worker's loop.
    fn run_worker(&mut self, at: usize) -> Result<(), String> {
        let worker = &mut self.workers[at];
        worker.phase = if worker.phase == Phase::Round {
            if worker.worker.round() { Phase::Wait } else { Phase::Round }
        } else {
            match worker.worker.wait() {
                Ok(()) => Phase::Round,
                Err(error) if error.raw_os_error() == Some(errno::TIME) => Phase::Asleep,
                Err(error) => return Err(format!("the engine failed: {error}")),
            }
        };
        self.drivers[at].poll_interrupt();
        self.scsi.wake_control();
        self.forward_kicks();
        Ok(())
    }

    /// Forwards the kicks of engines that released claimed blocks or bounce memory to the rings of
    /// the others.
    pub(super) fn forward_kicks(&self) {
        let workers = self.workers.iter().map(|worker| (&*worker.kick, worker.ring));
        let initiators = self.initiators.iter().map(|initiator| (&initiator.kick, initiator.ring));
        for (kick, ring) in workers.chain(initiators) {
            if kick.read().is_ok() {
                self.host.lock().kick(ring);
            }
        }
    }

    /// Has a driver make up to three requests available and publish them at once.
    fn submit(&mut self, at: usize) {
        for _ in 0..self.random.within(1, 3).min(self.left) {
            if !self.drivers[at].has_room() {
                break;
            }
            self.left -= 1;
            self.counts.requests += 1;
            let (request, expected) = if self.plan.uses_scsi {
                let (request, command) = self.draw_command();
                self.host.lock().log(|| format!("driver {at} sends {command}"));
                (request, Expected::Scsi(command))
            } else {
                let (request, expectation) = self.draw_request();
                self.host.lock().log(|| describe(at, &request, &expectation));
                (request.framed(), Expected::Block(expectation))
            };
            let now_ns = self.host.lock().now_ns;
            self.drivers[at].offer(&request, expected, now_ns, &mut self.random);
        }
        self.publish(at);
    }

    /// Has a driver publish what it made available.
    pub(super) fn publish(&mut self, at: usize) {
        if self.drivers[at].publish() {
            self.host.lock().kick(self.workers[at].ring);
        }
        self.now += 1;
    }

    /// Draws a range of sectors, whole blocks, of at most `limit` sectors.
    pub(super) fn draw_range(&mut self, limit: usize) -> (usize, usize) {
        let block = self.plan.block;
        let blocks = self.plan.sectors / block;
        let first = self.random.below(blocks);
        let limit = (blocks - first).min(limit / block);
        (first * block, self.random.within(1, limit) * block)
    }

    /// Draws a request and its expectation.
    fn draw_request(&mut self) -> (Request, Expectation) {
        let (first, count) = self.draw_range(MAX_SECTORS);
        let flush = if self.plan.flush { 25 } else { 0 };
        let (discard, zero) = if self.plan.range_requests { (7, 10) } else { (0, 0) };
        match self.random.weighted(&[45, 30, flush, discard, zero, 1]) {
            Some(0) => {
                let effect = self.draw_write(first, count);
                let out =
                    (first..first + count).flat_map(|sector| effect.value(sector).bytes(sector));
                let request = block_request::write(first, out.collect());
                (request, self.change(effect, first, count))
            }
            Some(1) => {
                let read = self.oracle.offer_read(first, count, self.now);
                (
                    block_request::bare(kind::IN, first, count * SECTOR),
                    Expectation::Read { first, read },
                )
            }
            Some(2) => {
                (block_request::bare(kind::FLUSH, 0, 0), Expectation::Flush { offered: self.now })
            }
            Some(3) => {
                let expectation = match self.plan.discard_effect(first, count) {
                    DiscardEffect::Anything => self.change(Effect::Anything, first, count),
                    DiscardEffect::Zero => self.change(Effect::Put(Value::Zero), first, count),
                    DiscardEffect::Untouched => self.change(Effect::Anything, first, 0),
                };
                (block_request::range(kind::DISCARD, first, count, 0), expectation)
            }
            Some(4) => {
                let expectation = self.change(Effect::Put(Value::Zero), first, count);
                let unmap = u32::from(self.random.coin());
                (block_request::range(kind::WRITE_ZEROES, first, count, unmap), expectation)
            }
            _ => (block_request::bare(kind::GET_ID, 0, 20), Expectation::Id),
        }
    }

    /// Draws the values of a write: its number, zeroes, or zeroes at one end.
    pub(super) fn draw_write(&mut self, first: usize, count: usize) -> Effect {
        let value = Value::Written(u32::try_from(self.oracle.next_id()).unwrap());
        if !self.random.chance(self.plan.zero_writes) {
            return Effect::Put(value);
        }
        if count == 1 || self.random.coin() {
            self.counts.zero_writes += 1;
            return Effect::Put(Value::Zero);
        }
        let at = first + self.random.within(1, count - 1);
        let (before, after) =
            if self.random.coin() { (value, Value::Zero) } else { (Value::Zero, value) };
        Effect::Split { at, before, after }
    }

    /// Registers a change of sectors with the oracle.
    fn change(&mut self, effect: Effect, first: usize, count: usize) -> Expectation {
        let op = self.oracle.offer(effect, first, count, self.now);
        Expectation::Change { op, offered: self.now }
    }

    /// Has a driver reap its completions.
    pub(super) fn reap(&mut self, at: usize) -> Result<(), String> {
        if self.random.chance(100) {
            self.drivers[at].polling = !self.drivers[at].polling;
        }
        self.now += 1;
        for completed in self.drivers[at].reap()? {
            self.check_completion(at, completed)?;
        }
        self.now += 1;
        Ok(())
    }

    /// Switches the write cache.
    fn toggle(&mut self) -> Result<(), String> {
        let on = self.random.coin();
        self.now += 1;
        self.host
            .lock()
            .log(|| format!("driver switches the write cache {}", if on { "on" } else { "off" }));
        self.front().device().write_config(WRITEBACK, &[u8::from(on)]);
        let mut writeback = [0];
        self.front().device().read_config(WRITEBACK, &mut writeback);
        if writeback != [u8::from(on)] && self.host.lock().faults == 0 {
            return Err("the write cache is not switched although no fault was injected".into());
        }
        if writeback == [0] {
            self.cache_off_since.get_or_insert(self.now);
            // The switch makes all completed writes durable.
            self.oracle.mark_durable_before(self.now);
        } else {
            self.cache_off_since = None;
        }
        self.now += 1;
        Ok(())
    }
}

fn describe(at: usize, request: &Request, expectation: &Expectation) -> String {
    let verb = match request.kind {
        kind::IN => "reads",
        kind::OUT => "writes",
        kind::FLUSH => "flushes",
        kind::DISCARD => "discards",
        kind::WRITE_ZEROES => "zeroes",
        _ => "reads the serial number at",
    };
    let Request { sector, sectors, .. } = request;
    format!("driver {at} {verb} sector {sector} +{sectors}: {expectation}")
}
