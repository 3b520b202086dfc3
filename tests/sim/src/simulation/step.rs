//! The steps of a schedule: drivers submit and reap, workers run, the host moves, time passes.

use super::submit_block::describe;
use super::{Phase, Simulation, StepResult};
use crate::call::errno;
use crate::expected::Expected;
use crate::initiator::Initiator;
use crate::queue_driver::QueueDriver;

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
    /// Units whose hosts have calls.
    hosts: Vec<usize>,
}

impl Parties {
    /// Whether none has anything to do.
    fn are_idle(&self) -> bool {
        let Self { workers, drivers, initiators, hosts, .. } = self;
        [workers, drivers, initiators, hosts].iter().all(|ready| ready.is_empty())
    }
}

fn indices<T>(all: &[T], is_ready: impl Fn(&T) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|at| is_ready(&all[*at])).collect()
}

impl Simulation<'_> {
    /// Takes one step of a party drawn by weight.
    pub(super) fn step(&mut self) -> Result<StepResult, String> {
        let weights = self.plan.weights;
        let ready = |yes: bool, weight: u32| if yes { weight } else { 0 };
        let parties = self.parties();
        let are_idle = parties.are_idle();
        let Parties { workers, drivers, with_room, initiators, comparing, hosts } = parties;
        let timer = self.next_timeout_ns().is_some();
        self.check_released(&workers)?;
        let submits = self.left > 0 && !with_room.is_empty();
        let manages = self.manages_tasks();
        let idle = !(submits || manages) && are_idle;
        if idle && !timer && !self.is_complete() {
            return self.thaw_deadlock().map(|()| StepResult::Continue);
        }
        let weights = [
            ready(submits, weights.submit),
            ready(!drivers.is_empty(), weights.reap),
            ready(!workers.is_empty(), weights.worker),
            ready(!hosts.is_empty(), weights.host),
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
            weights.freeze,
            weights.hotplug,
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
                let at = self.pick_unit(&hosts);
                self.units[at].host.lock().step();
            }
            Some(5) => self.toggle()?,
            Some(6) if self.random.chance(100) => return Ok(StepResult::Reset),
            Some(9) if self.random.chance(100) => return Ok(StepResult::Kill),
            Some(10) => self.submit_compare(&comparing),
            Some(11) => self.run_initiator(&initiators)?,
            Some(12) => self.start_function(),
            Some(13) => self.manage_tasks()?,
            Some(step) => self.step_hosts(step, idle)?,
            None => {}
        }
        Ok(StepResult::Continue)
    }

    /// The parties that can take a step.
    fn parties(&self) -> Parties {
        // A driver runs on an interrupt, or polls while it has requests outstanding.
        let wakes = |driver: &QueueDriver<Expected>| {
            driver.interrupted || driver.polling && driver.outstanding() > 0
        };
        let awake = |is_asleep: bool, (unit, ring): (usize, usize)| {
            !is_asleep || self.units[unit].host.lock().is_readable(ring)
        };
        Parties {
            workers: indices(&self.workers, |worker| {
                if worker.sleep.is_asleep() {
                    return worker.sleep.is_signalled();
                }
                if self.plan.chain.is_some() {
                    return self.is_awake_in_levels(worker);
                }
                awake(worker.phase == Phase::Asleep, worker.ring)
            }),
            drivers: indices(&self.drivers, wakes),
            with_room: indices(&self.drivers, QueueDriver::has_room),
            initiators: indices(&self.initiators, |initiator| {
                awake(initiator.is_asleep, (0, initiator.ring))
            }),
            comparing: indices(&self.initiators, Initiator::has_room),
            hosts: indices(&self.units, |unit| unit.host.lock().has_calls()),
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
        worker.sleep.wake();
        worker.phase = if worker.phase == Phase::Round {
            if worker.worker.round() { Phase::Wait } else { Phase::Round }
        } else {
            match worker.worker.wait() {
                Ok(()) => Phase::Round,
                Err(error) if error.raw_os_error() == Some(errno::TIME) => Phase::Asleep,
                Err(error) => return Err(format!("the engine failed: {error}")),
            }
        };
        self.find_rings(at);
        self.note_sleep_in_levels(at);
        self.drivers[at].poll_interrupt();
        self.scsi.wake_control();
        self.forward_kicks();
        self.check_sleep(at)
    }

    /// Has a driver make up to three requests available and publish them at once.
    fn submit(&mut self, at: usize) {
        for _ in 0..self.random.within(1, 3).min(self.left) {
            if !self.drivers[at].has_room() {
                break;
            }
            self.left -= 1;
            self.counts.requests += 1;
            let to = self.draw_attached();
            let unit = &mut self.units[to];
            let (request, expected) = if self.plan.uses_scsi {
                self.scsi.last_id += 1;
                let (request, command) = unit.draw_command(&mut self.random, self.scsi.last_id);
                unit.host.lock().log(|| format!("driver {at} sends {command}"));
                (request, Expected::Scsi(command))
            } else {
                let (request, expectation) = unit.draw_request(&mut self.random);
                unit.host.lock().log(|| describe(at, &request, &expectation));
                (request.framed(), Expected::Block(expectation))
            };
            let now_ns = unit.host.lock().now_ns;
            self.drivers[at].offer(&request, expected, now_ns, &mut self.random);
        }
        self.publish(at);
    }

    /// Has a driver publish what it made available.
    pub(super) fn publish(&mut self, at: usize) {
        if self.drivers[at].publish() {
            self.kick(at);
        }
        self.tick();
    }

    /// Has a driver reap its completions.
    pub(super) fn reap(&mut self, at: usize) -> Result<(), String> {
        if self.random.chance(100) {
            self.drivers[at].polling = !self.drivers[at].polling;
        }
        self.tick();
        for completed in self.drivers[at].reap()? {
            self.check_completion(at, completed)?;
        }
        self.tick();
        Ok(())
    }

    /// Switches the write cache.
    fn toggle(&mut self) -> Result<(), String> {
        let on = self.random.coin();
        self.tick();
        self.trace
            .push(|| format!("driver switches the write cache {}", if on { "on" } else { "off" }));
        self.front().device().write_config(WRITEBACK, &[u8::from(on)]);
        let mut writeback = [0];
        self.front().device().read_config(WRITEBACK, &mut writeback);
        let unit = &mut self.units[0];
        if writeback != [u8::from(on)] && unit.host.lock().faults == 0 {
            return Err("the write cache is not switched although no fault was injected".into());
        }
        if writeback == [0] {
            unit.cache_off_since.get_or_insert(unit.now);
            // The switch makes all completed writes durable.
            unit.oracle.mark_durable_before(unit.now);
        } else {
            unit.cache_off_since = None;
        }
        self.tick();
        Ok(())
    }
}
