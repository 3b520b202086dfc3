//! Simulation of one schedule: drivers, workers and host take steps in random order until the
//! planned ending, and the oracle checks each completion.

mod check;
mod check_scsi;
mod compare;
mod process;
mod scsi;
mod step;
mod submit_scsi;

use std::sync::Arc;

use block::Backend;
use block::simulation::Clock;
use devices::virtio::{DeviceStatus, FaultReporter, Interrupt};
use vmm_sys_util::eventfd::EventFd;

use driver::feature;

use crate::counts::Counts;
use crate::disk::{SharedHost, SimDisk};
use crate::expected::Expected;
use crate::front::{Front, Rounds};
use crate::host::Host;
use crate::initiator::Initiator;
use crate::oracle::{OpId, Oracle, Time};
use crate::plan::{Ending, Plan};
use crate::queue_driver::QueueDriver;
use crate::resources::Resources;
use crate::scsi_state::ScsiState;
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

/// A worker and the ring of its engine.
struct RunningWorker {
    worker: Box<dyn Rounds>,
    /// Signalled by the driver, and by other engines that release claimed blocks or bounce memory.
    kick: Arc<EventFd>,
    ring: usize,
    phase: Phase,
}

/// The device and its disk, as the process has opened them.
struct Device {
    disk: Arc<SimDisk>,
    front: Front,
}

/// State of a schedule.
struct Simulation<'a> {
    plan: Plan,
    random: Random,
    host: SharedHost,
    clock: Clock,
    resources: &'a Resources,
    workers: Vec<RunningWorker>,
    drivers: Vec<QueueDriver<Expected>>,
    scsi: ScsiState,
    initiators: Vec<Initiator>,
    /// `None` from the death of a process until a successor has opened the disk. Dropped after the
    /// workers, for which it waits.
    device: Option<Device>,
    oracle: Oracle,
    now: Time,
    /// Requests left to submit.
    left: usize,
    resets_left: usize,
    kills_left: usize,
    /// Changes in flight when their process died. They may take effect until a successor has
    /// opened the disk.
    orphans: Vec<OpId>,
    /// Start of the current period with the write cache disabled, in which completed writes are
    /// durable.
    cache_off_since: Option<Time>,
    /// The device status register.
    status: DeviceStatus,
    counts: Counts,
}

/// Plays a schedule and returns the totals or the violation, and the trace if `traced`.
pub(super) fn play(
    resources: &Resources,
    plan: &Plan,
    random: &mut Random,
    traced: bool,
) -> (Result<Counts, String>, Vec<String>) {
    let clock = Clock::simulated();
    let host = SharedHost::new(Host::new(plan, clock.clone(), random.fork(), traced));
    let mut simulation = Simulation {
        random: random.fork(),
        host: host.clone(),
        clock,
        resources,
        device: None,
        workers: Vec::new(),
        drivers: Vec::new(),
        scsi: ScsiState::new(),
        initiators: Vec::new(),
        oracle: Oracle::new(plan.sectors, plan.short_within_sector),
        now: 1,
        left: plan.operations,
        resets_left: 2,
        kills_left: 3,
        orphans: Vec::new(),
        cache_off_since: None,
        status: DeviceStatus::driver_ok(),
        counts: Counts::default(),
        plan: plan.clone(),
    };
    let result = simulation.start();
    if result.is_err() {
        simulation.host.lock().cut_power();
        simulation.initiators.clear();
        simulation.stop_workers();
    }
    drop(simulation);
    let trace = host.lock().trace.take().unwrap_or_default();
    (result, trace)
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

    /// Opens the disk; `false` while the lock on its image is held.
    fn open(&mut self) -> Result<bool, String> {
        let image = &self.resources.image;
        let disk = SimDisk::open(&self.plan, self.clock.clone(), self.host.clone(), image)?;
        let Some(disk) = disk.map(Arc::new) else { return Ok(false) };
        let backend: Arc<dyn Backend> = Arc::clone(&disk) as _;
        let front = Front::new(&self.plan, backend)?;
        self.device = Some(Device { disk, front });
        self.scsi.device_opened();
        self.cache_off_since = (!self.plan.mode.has_write_cache()).then_some(self.now);
        Ok(true)
    }

    fn front(&mut self) -> &mut Front {
        &mut self.device.as_mut().expect("the disk is open").front
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
            self.cache_off_since = (!has_cache).then_some(self.now);
        }
        let first = self.front().first_queue();
        for index in first..first + self.plan.queues {
            let (driver, active) =
                QueueDriver::new(&self.resources.memory, index, self.plan.queue_size, features);
            let faults = self.fault_reporter();
            let kick = Arc::clone(&active.kick);
            let worker = self.front().worker(active, faults)?;
            let ring = self.host.lock().last_ring();
            self.workers.push(RunningWorker { worker, kick, ring, phase: Phase::Round });
            self.drivers.push(driver);
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
            let quiet = self.is_complete() && self.device.is_some();
            if quiet && self.plan.ending != Ending::Cut {
                self.check_visible()?;
                break;
            }
            self.counts.steps += 1;
            if self.device.is_none() {
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
        if self.plan.zeroes_by_detection_only() {
            self.counts.detected += self.host.lock().range_calls;
        }
        self.counts.orphans += self.host.lock().orphans_completed;
        Ok(self.counts)
    }

    /// Resets the device.
    fn reset(&mut self) {
        self.resets_left -= 1;
        self.host.lock().log(|| "driver resets the device".into());
        self.stop_workers();
        self.now += 1;
        for driver in std::mem::take(&mut self.drivers) {
            for op in driver.into_expectations().flat_map(|expected| expected.changes()) {
                self.oracle.complete(op, false, false, self.now);
            }
        }
        self.front().device().reset();
        self.scsi.device_reset(self.now);
        self.now += 1;
    }

    /// Drops the workers; their engines drain the requests in flight.
    fn stop_workers(&mut self) {
        self.host.lock().block_waits = true;
        self.scsi.control = None;
        self.workers.clear();
        self.host.lock().block_waits = false;
    }

    /// Closes the device.
    fn close(&mut self) -> Result<(), String> {
        self.host.lock().log(|| "the device is closed".into());
        self.initiators.clear();
        self.stop_workers();
        self.now += 1;
        match self.front().device().close() {
            Ok(()) => self.oracle.flush_succeeded(self.now),
            Err(_) if self.host.lock().faults > 0 => Ok(()),
            Err(error) => Err(format!("closing the device failed: {error}")),
        }
    }

    /// Checks the visible content of the disk when all requests have completed.
    fn check_visible(&mut self) -> Result<(), String> {
        self.now += 1;
        let host = self.host.lock();
        let visible = |sector| host.medium.visible(sector);
        self.oracle.check_visible(visible, host.lost_data(), self.now)
    }

    /// Cuts the power and checks each sector.
    fn cut_power(&mut self) -> Result<(), String> {
        self.host.lock().log(|| "power is cut".into());
        self.host.lock().cut_power();
        self.initiators.clear();
        self.stop_workers();
        let host = self.host.lock();
        for sector in 0..self.plan.sectors {
            self.oracle.check_after_cut(sector, host.medium.visible(sector))?;
        }
        host.violation.clone().map_or(Ok(()), Err)
    }
}
