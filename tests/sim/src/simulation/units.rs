//! The steps of a schedule with several disks: the choice of one, time, kicks, and the sleep of a
//! worker with several engines.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::unit::Unit;
use super::{Phase, RunningWorker, Simulation};

/// The counter of a queue's kick whose signals were forwarded to the rings that poll it.
const FORWARDED: u64 = 1 << 20;

impl RunningWorker {
    /// Whether it sleeps, and would go on sleeping.
    fn sleeps(&self) -> bool {
        self.phase == Phase::Asleep && self.sleep.is_asleep() && !self.sleep.is_signalled()
    }

    fn kick_number(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}

/// Whether a queue's kick was signalled since the last call. It stays as readable as it was: the
/// worker polls it as well.
fn take_new_signal(kick: &EventFd) -> bool {
    let Ok(count) = kick.read() else { return false };
    kick.write(FORWARDED).unwrap();
    count != FORWARDED
}

impl Simulation<'_> {
    /// Time passes for the oracles.
    pub(super) fn tick(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.now += 1);
    }

    /// One of some units. Draws nothing if the schedule has one.
    pub(super) fn pick_unit(&mut self, among: &[usize]) -> usize {
        if let [only] = among { *only } else { self.random.pick(among) }
    }

    /// A unit for a step of its host.
    pub(super) fn draw_unit(&mut self) -> usize {
        let units: Vec<usize> = (0..self.units.len()).collect();
        self.pick_unit(&units)
    }

    /// A unit for a request.
    pub(super) fn draw_attached(&mut self) -> usize {
        let is_attached = |at: &usize| self.units[*at].is_attached;
        let units: Vec<usize> = (0..self.units.len()).filter(is_attached).collect();
        self.pick_unit(&units)
    }

    /// The steps of hosts and of time.
    pub(super) fn step_hosts(&mut self, step: usize, idle: bool) -> Result<(), String> {
        match step {
            4 => self.write_back(),
            7 => self.advance_time(idle),
            8 => self.toggle_full(),
            14 => self.toggle_frozen(),
            15 if self.random.chance(100) => return self.toggle_attached(),
            _ => {}
        }
        Ok(())
    }

    /// Writes back data of a disk.
    pub(super) fn write_back(&mut self) {
        let at = self.draw_unit();
        self.units[at].host.lock().write_back();
    }

    /// Fills a file system, or frees space.
    pub(super) fn toggle_full(&mut self) {
        let filled = |at: &usize| self.units[*at].plan.weights.space > 0;
        let units: Vec<usize> = (0..self.units.len()).filter(filled).collect();
        if !units.is_empty() {
            let at = self.pick_unit(&units);
            self.units[at].host.lock().toggle_full();
        }
    }

    /// Stops a host, or starts it. One runs at any time.
    pub(super) fn toggle_frozen(&mut self) {
        let at = self.draw_unit();
        let is_frozen = |unit: &Unit| unit.host.lock().is_frozen();
        let all_others = self.units.iter().filter(|unit| !is_frozen(unit)).count() == 1;
        let frozen = is_frozen(&self.units[at]);
        if frozen || !all_others {
            self.counts.freezes += u64::from(!frozen);
            self.units[at].host.lock().set_frozen(!frozen);
        }
    }

    /// All hosts go on.
    pub(super) fn thaw(&mut self) {
        for unit in &self.units {
            unit.host.lock().set_frozen(false);
        }
    }

    /// No party can take a step, and requests are in flight: the host of their disks has to be one
    /// that has stopped.
    pub(super) fn thaw_deadlock(&mut self) -> Result<(), String> {
        let mut waiting = self.outstanding();
        for unit in 0..self.units.len() {
            if self.units[unit].host.lock().is_frozen() {
                waiting -= self.commands().filter(|command| command.unit == unit).count();
            }
        }
        let is_frozen = |unit: &Unit| unit.host.lock().is_frozen();
        let is_any_frozen = self.units.iter().any(is_frozen);
        if !is_any_frozen || waiting > self.scsi.functions_in_flight() {
            return Err(format!("deadlock: {waiting} requests never complete"));
        }
        self.thaw();
        Ok(())
    }

    /// Nanoseconds until the next timeout of a worker.
    pub(super) fn next_timeout_ns(&self) -> Option<u64> {
        let now_ns = self.now_ns();
        let hosts = self.units.iter().filter_map(|unit| unit.host.lock().next_timeout_ns());
        let engines = hosts.map(|next_ns| next_ns.saturating_sub(now_ns));
        let as_ns = |left: Duration| u64::try_from(left.as_nanos()).unwrap();
        let workers = self.workers.iter();
        let sleeps = workers.flat_map(|worker| [worker.sleep.left(), self.left_in_levels(worker)]);
        engines.chain(sleeps.flatten().map(as_ns)).min()
    }

    /// The time of all hosts.
    pub(super) fn now_ns(&self) -> u64 {
        self.units[0].host.lock().now_ns
    }

    /// Advances the clock by up to 20 ms, with `until_timeout` to after the next timeout.
    pub(super) fn advance_time(&mut self, until_timeout: bool) {
        let mut by_ns = self.units[0].host.lock().random.within(1, 20) as u64 * 1_000_000;
        if until_timeout {
            by_ns += self.next_timeout_ns().unwrap_or_default();
        }
        for unit in &self.units {
            unit.host.lock().advance_time(by_ns);
        }
        self.clock.advance(Duration::from_nanos(by_ns));
        let now_ns = self.now_ns();
        self.trace.push(|| format!("  time is {} ms", now_ns / 1_000_000));
    }

    /// The driver kicks a queue.
    pub(super) fn kick(&mut self, at: usize) {
        let worker = &self.workers[at];
        if self.plan.has_neighbours {
            worker.kick.write(1).unwrap();
            self.forward_kicks();
        } else {
            self.kick_rings(at);
        }
    }

    /// Forwards the kicks of engines that released claimed blocks or bounce memory to the rings of
    /// the others. With several disks on a queue, forwards every kick to the rings that poll it.
    pub(super) fn forward_kicks(&mut self) {
        if self.plan.has_neighbours {
            for unit in &self.units {
                unit.host.lock().forward_own_kicks();
            }
            for worker in &mut self.workers {
                if take_new_signal(&worker.kick) {
                    worker.kicks += 1;
                    let forward =
                        |unit: &Unit| unit.host.lock().forward_queue_kick(worker.kick_number());
                    self.units.iter().for_each(forward);
                }
            }
            return;
        }
        for at in 0..self.workers.len() {
            if self.workers[at].kick.read().is_ok() {
                self.kick_rings(at);
            }
        }
        for initiator in &self.initiators {
            if initiator.kick.read().is_ok() {
                self.units[0].host.lock().kick(initiator.ring);
            }
        }
    }

    /// Finds the engines that a worker has made, and the one in which it sleeps.
    pub(super) fn find_rings(&mut self, at: usize) {
        let Self { workers, units, plan, .. } = self;
        let worker = &mut workers[at];
        for (number, unit) in units.iter_mut().enumerate().filter(|_| plan.has_neighbours) {
            let mut host = unit.host.lock();
            worker.rings.extend((unit.rings..host.rings()).map(|ring| (number, ring)));
            unit.rings = host.rings();
            if let Some(ring) = host.slept_in.take() {
                worker.ring = (number, ring);
            }
        }
    }

    /// Checks that a worker that sleeps with several engines would be woken for each of them, and
    /// that it is not woken twice by one signal.
    pub(super) fn check_sleep(&self, at: usize) -> Result<(), String> {
        let worker = &self.workers[at];
        let signals = |(unit, ring): &(usize, usize)| self.units[*unit].host.lock().signals(*ring);
        let causes = worker.kicks + worker.rings.iter().map(signals).sum::<u64>();
        if worker.sleep.wakes() > causes {
            return Err(format!("queue {at} wakes although nothing has signalled it"));
        }
        if !worker.sleeps() {
            return Ok(());
        }
        for (unit, ring) in &worker.rings {
            let host = self.units[*unit].host.lock();
            if host.has_results(*ring) {
                return Err(format!(
                    "queue {at} sleeps, but the host has a result for unit {unit}"
                ));
            }
            if host.due(*ring).is_some_and(|due| !worker.sleep.ends_by(due)) {
                return Err(format!("queue {at} sleeps longer than until unit {unit} is due"));
            }
        }
        Ok(())
    }
}
