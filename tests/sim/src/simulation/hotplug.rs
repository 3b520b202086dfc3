//! Disks that are detached from a controller and attached again while its queues have requests.
//!
//! Commands in flight end as usual. The workers then release the disk, and another process may open
//! it: here this one opens it again, and attaches it at the same address.

use std::sync::Arc;

use super::Simulation;

impl Simulation<'_> {
    /// Detaches a disk unless it is the last one, or attaches one that was released.
    pub(super) fn toggle_attached(&mut self) -> Result<(), String> {
        let at = self.draw_unit();
        let attached = self.units.iter().filter(|unit| unit.is_attached).count();
        if self.units[at].is_released {
            self.attach(at)
        } else if self.units[at].is_attached && attached > 1 {
            self.detach(at);
            Ok(())
        } else {
            Ok(())
        }
    }

    fn detach(&mut self, at: usize) {
        let address = self.units[at].address;
        self.front().detach(address);
        self.tick();
        self.counts.detached += 1;
        let unit = &mut self.units[at];
        unit.is_attached = false;
        let now_ns = unit.host.lock().now_ns;
        (unit.detached, unit.detached_ns) = (Some(unit.now), Some(now_ns));
        unit.host.lock().log(|| "it is detached".into());
        self.tick();
        self.announce_change(at);
        self.forward_kicks();
    }

    fn attach(&mut self, at: usize) -> Result<(), String> {
        let Self { units, clock, resources, .. } = self;
        let unit = &mut units[at];
        unit.disk = None;
        let was_off = unit.cache_off_since.is_some();
        if !unit.open(clock, resources)? {
            return Err(format!("the image of unit {at} stays locked"));
        }
        let (address, disk) =
            (unit.address, Arc::clone(unit.disk.as_ref().expect("it was opened")));
        unit.check_by_successor()?;
        let attentions = units.len();
        let unit = &mut units[at];
        unit.opened(attentions);
        // A driver that did not notice relies on a write cache that it has switched off (ADR 14).
        if was_off {
            unit.cache_off_since = Some(unit.now);
        }
        self.front().attach(address, disk)?;
        self.announce_change(at);
        self.forward_kicks();
        Ok(())
    }

    /// The other units of the target may report that its units have changed.
    fn announce_change(&mut self, changed: usize) {
        let others = self.units.iter_mut().enumerate().filter(|(at, _)| *at != changed);
        for (_, unit) in others.filter(|_| self.plan.one_target) {
            unit.scsi.attentions += 1;
        }
    }

    /// Checks that workers that all sleep, so that none is awake, have released each detached disk
    /// of which no command is in flight.
    pub(super) fn check_released(&mut self, awake: &[usize]) -> Result<(), String> {
        if !awake.is_empty() {
            return Ok(());
        }
        for at in 0..self.units.len() {
            let unit = &self.units[at];
            let is_busy = self.commands().any(|command| command.unit == at);
            if unit.is_attached || unit.is_released || is_busy {
                continue;
            }
            if !unit.is_unused() {
                return Err(format!("all queues sleep, but unit {at} is not released"));
            }
            self.units[at].is_released = true;
        }
        Ok(())
    }
}
