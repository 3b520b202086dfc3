//! Simulation of one schedule: drivers, workers and host take steps in random order until the
//! planned ending, and the oracle checks each completion.

mod check;
mod check_scsi;
mod compare;
mod hotplug;
mod layers;
mod process;
mod scsi;
mod step;
mod submit_block;
mod submit_scsi;
mod unit;
mod units;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use block::simulation::Clock;
use devices::virtio::{DeviceStatus, FaultReporter, Interrupt};
use vmm_sys_util::eventfd::EventFd;

use self::unit::Unit;
use driver::feature;

use crate::counts::Counts;
use crate::expected::Expected;
use crate::front::{Front, Rounds};
use crate::initiator::Initiator;
use crate::plan::{Ending, Plan};
use crate::queue_driver::QueueDriver;
use crate::resources::Resources;
use crate::scsi_state::ScsiState;
use crate::sleep::QueueSleep;
use crate::trace::Trace;
use fixtures::Random;

/// Steps above which a schedule counts as endless.
const STEP_LIMIT: usize = 100_000;

/// Position of a worker in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next step is a round.
    Round,
    /// The next step is a wait.
    Wait,
    /// Sleeps until its ring is readable.
    Asleep,
}

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepResult {
    Continue,
    Reset,
    Kill,
}

/// A worker and the rings of its engines.
struct RunningWorker {
    worker: Box<dyn Rounds>,
    /// Signalled by the driver, and by other engines that release claimed blocks or bounce memory.
    kick: Arc<EventFd>,
    /// The ring of its only engine, or the one in which it slept: the unit, and the ring.
    ring: (usize, usize),
    /// The rings of all of its engines, if there may be several, or of all levels of its engine.
    rings: Vec<(usize, usize)>,
    /// The end of its sleep with calls in several levels, if it sleeps so.
    sleeps_until: Option<Option<Instant>>,
    /// Its sleep with several engines.
    sleep: QueueSleep,
    /// Signals of the kick, if the worker has several engines.
    kicks: u64,
    phase: Phase,
}

/// State of a schedule.
struct Simulation<'a> {
    plan: Plan,
    random: Random,
    clock: Clock,
    resources: &'a Resources,
    workers: Vec<RunningWorker>,
    drivers: Vec<QueueDriver<Expected>>,
    scsi: ScsiState,
    initiators: Vec<Initiator>,
    /// `None` from the death of a process until a successor has opened the disks. Dropped after the
    /// workers, for which it waits.
    front: Option<Front>,
    units: Vec<Unit>,
    /// Requests left to submit.
    left: usize,
    resets_left: usize,
    kills_left: usize,
    /// The device status register.
    status: DeviceStatus,
    counts: Counts,
    trace: Trace,
}

/// Plays a schedule and returns the totals or the violation, and the trace if `traced`.
pub(super) fn play(
    resources: &Resources,
    plan: &Plan,
    random: &mut Random,
    traced: bool,
) -> (Result<Counts, String>, Vec<String>) {
    let clock = Clock::simulated();
    let trace = Trace::new(traced);
    let units = make_units(plan, random, &trace);
    let mut simulation = Simulation {
        random: random.fork(),
        clock,
        resources,
        front: None,
        units,
        workers: Vec::new(),
        drivers: Vec::new(),
        scsi: ScsiState::new(),
        initiators: Vec::new(),
        left: plan.operations,
        resets_left: 2,
        kills_left: 3,
        status: DeviceStatus::driver_ok(),
        counts: Counts::default(),
        plan: plan.clone(),
        trace: trace.clone(),
    };
    let result = simulation.start();
    if result.is_err() {
        simulation.stop_hosts();
        simulation.initiators.clear();
        simulation.stop_workers();
    }
    simulation.close_disks();
    (result, trace.take())
}

fn make_units(plan: &Plan, random: &mut Random, trace: &Trace) -> Vec<Unit> {
    let plans = std::iter::once(plan).chain(&plan.others);
    let of_unit = |unit: &Plan| {
        let trace = if plan.has_neighbours { trace.of_unit(unit.unit) } else { trace.clone() };
        Unit::new(unit, plan.one_target, random.fork(), trace)
    };
    plans.map(of_unit).collect()
}

impl Simulation<'_> {
    /// Opens the disk and runs the schedule.
    fn start(&mut self) -> Result<Counts, String> {
        if !self.open()? {
            return Err("the image is locked although no process uses it".into());
        }
        self.initialize()?;
        self.start_initiators()?;
        self.run()
    }

    /// Opens the disks; `false` while the lock on one of their images is held.
    fn open(&mut self) -> Result<bool, String> {
        for unit in &mut self.units {
            if !unit.open(&self.clock, self.resources)? {
                self.units.iter_mut().for_each(|unit| unit.disk = None);
                return Ok(false);
            }
        }
        let disk = |unit: &Unit| Arc::clone(unit.disk.as_ref().expect("it was opened"));
        let mut front = Front::new(&self.plan, disk(&self.units[0]))?;
        // Attaching a unit is announced to the others of its target.
        let attentions = if self.plan.one_target { self.units.len() } else { 1 };
        for unit in &mut self.units {
            front.attach(unit.address, disk(unit))?;
            unit.opened(attentions);
        }
        self.front = Some(front);
        self.scsi.functions.clear();
        Ok(true)
    }

    /// Drops the device and its disks, once the workers are gone.
    fn close_disks(&mut self) {
        self.front = None;
        for unit in &mut self.units {
            assert!(unit.is_unused(), "a disk of a device that was dropped is in use");
            unit.disk = None;
        }
    }

    fn front(&mut self) -> &mut Front {
        self.front.as_mut().expect("the disks are open")
    }

    /// Negotiates features, lays out the queues and makes their workers.
    fn initialize(&mut self) -> Result<(), String> {
        let offered = self.front().device().features()
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1;
        let mut features = offered;
        for (wanted, bit) in [
            (self.plan.event_idx, feature::EVENT_IDX),
            (self.plan.indirect, feature::INDIRECT_DESC),
            (self.plan.flush && !self.plan.uses_scsi, feature::BLK_FLUSH),
        ] {
            if !wanted {
                features &= !bit;
            }
        }
        self.front().device().negotiated(features);
        if !self.plan.uses_scsi {
            let has_cache = self.plan.mode.has_write_cache() && self.plan.flush;
            let unit = &mut self.units[0];
            unit.cache_off_since = (!has_cache).then_some(unit.now);
        }
        let first = self.front().first_queue();
        for index in first..first + self.plan.queues {
            let (driver, active) =
                QueueDriver::new(&self.resources.memory, index, self.plan.queue_size, features);
            let faults = self.fault_reporter();
            let kick = Arc::clone(&active.kick);
            let sleep = QueueSleep::new(self.clock.clone());
            let worker = self.front().worker(active, faults, sleep.clone())?;
            let ring = (0, self.units[0].host.lock().last_ring());
            let phase = Phase::Round;
            self.workers.push(RunningWorker {
                worker,
                kick,
                ring,
                rings: Vec::new(),
                sleep,
                sleeps_until: None,
                kicks: 0,
                phase,
            });
            self.find_levels(self.workers.len() - 1);
            self.drivers.push(driver);
        }
        let kicks: Vec<_> = self.workers.iter().map(|worker| worker.kick.as_raw_fd()).collect();
        for unit in &self.units {
            unit.host.lock().queue_kicks = kicks.clone();
        }
        if self.plan.uses_scsi { self.start_scsi(features) } else { Ok(()) }
    }

    fn fault_reporter(&self) -> FaultReporter {
        FaultReporter::new(self.status.clone(), Interrupt::unassigned())
    }

    /// Runs the schedule to its end, cuts the power and checks the disk.
    fn run(&mut self) -> Result<Counts, String> {
        let cut_at = match self.plan.ending {
            Ending::Cut => self.plan.cut_at,
            Ending::Quiet | Ending::Close => usize::MAX,
        };
        for step in 0.. {
            if step == cut_at {
                break;
            }
            if step > STEP_LIMIT {
                return Err("the schedule does not end".into());
            }
            let quiet = self.is_complete() && self.front.is_some();
            if quiet && self.plan.ending != Ending::Cut {
                self.check_visible()?;
                break;
            }
            self.counts.steps += 1;
            if self.front.is_none() {
                if self.step_without_process()? {
                    self.initialize()?;
                }
            } else {
                match self.step()? {
                    StepResult::Continue => {}
                    StepResult::Reset => {
                        self.reset();
                        self.initialize()?;
                    }
                    StepResult::Kill => self.kill(),
                }
            }
            self.check_invariants()?;
        }
        if self.plan.ending == Ending::Close {
            self.close()?;
        }
        self.cut_power()?;
        for unit in &self.units {
            let (host, mut counts) = (unit.host.lock(), unit.counts);
            if unit.plan.zeroes_by_detection_only() {
                counts.detected += host.range_calls;
            }
            counts.orphans += host.orphans_completed;
            self.counts.add(counts);
        }
        Ok(self.counts)
    }

    /// Resets the device.
    fn reset(&mut self) {
        self.resets_left -= 1;
        self.trace.push(|| "driver resets the device".into());
        self.stop_workers();
        self.tick();
        for driver in std::mem::take(&mut self.drivers) {
            for expected in driver.into_expectations() {
                let unit = &mut self.units[expected.unit()];
                for op in expected.changes() {
                    unit.oracle.complete(op, false, false, unit.now);
                }
            }
        }
        self.front().device().reset();
        for unit in &mut self.units {
            unit.scsi.device_reset(unit.now);
        }
        self.scsi.functions.clear();
        self.tick();
    }

    /// Drops the workers; their engines drain the requests in flight.
    fn stop_workers(&mut self) {
        self.thaw();
        self.block_waits(true);
        self.scsi.control = None;
        let sleeps = self.workers.drain(..).map(|worker| worker.sleep.sleeps());
        self.counts.sleeps += sleeps.sum::<u64>();
        self.block_waits(false);
    }

    fn block_waits(&self, block: bool) {
        self.units.iter().for_each(|unit| unit.host.lock().block_waits = block);
    }

    /// Closes the device.
    fn close(&mut self) -> Result<(), String> {
        self.trace.push(|| "the device is closed".into());
        self.initiators.clear();
        self.stop_workers();
        self.tick();
        let closed = self.front().device().close();
        let faults: u64 = self.units.iter().map(|unit| unit.host.lock().faults).sum();
        match closed {
            Ok(()) => {
                let mut synced = self.units.iter_mut().filter(|unit| unit.is_attached);
                synced.try_for_each(|unit| unit.oracle.flush_succeeded(unit.now))
            }
            Err(_) if faults > 0 => Ok(()),
            Err(error) => Err(format!("closing the device failed: {error}")),
        }
    }

    /// Checks the visible content of the disks when all requests have completed.
    fn check_visible(&mut self) -> Result<(), String> {
        self.tick();
        self.units.iter_mut().try_for_each(Unit::check_visible)
    }

    /// Cuts the power and checks each sector.
    fn cut_power(&mut self) -> Result<(), String> {
        self.trace.push(|| "power is cut".into());
        self.stop_hosts();
        self.initiators.clear();
        self.stop_workers();
        self.units.iter().try_for_each(Unit::check_after_cut)
    }

    fn stop_hosts(&mut self) {
        self.units.iter().for_each(|unit| unit.host.lock().cut_power());
    }
}
