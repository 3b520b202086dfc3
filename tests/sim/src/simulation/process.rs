//! Death of the process by SIGKILL, and its successor.
//!
//! Without a process only the kernel takes steps, and a successor tries to open the disk. The lock
//! on the image decides when that succeeds.

use super::Simulation;
use super::unit::Unit;

impl Simulation<'_> {
    /// Kills the process. Its memory and its descriptors are gone, its calls are not.
    pub(super) fn kill(&mut self) {
        self.kills_left -= 1;
        self.counts.kills += 1;
        self.trace.push(|| "the process is killed".into());
        for unit in &self.units {
            unit.host.lock().kill_process();
        }
        self.stop_workers();
        self.close_disks();
        for driver in std::mem::take(&mut self.drivers) {
            for expected in driver.into_expectations() {
                self.units[expected.unit()].orphans.extend(expected.changes());
            }
        }
    }

    /// A step without a process. Returns whether a successor has opened the disks.
    pub(super) fn step_without_process(&mut self) -> Result<bool, String> {
        match self.random.weighted(&[5, self.plan.weights.write_back, 1]) {
            Some(0) => {
                let at = self.draw_unit();
                self.units[at].host.lock().step();
                Ok(false)
            }
            Some(1) => {
                self.write_back();
                Ok(false)
            }
            _ => self.open_by_successor(),
        }
    }

    /// A successor tries to open the disks.
    fn open_by_successor(&mut self) -> Result<bool, String> {
        if !self.open()? {
            self.counts.refused += 1;
            self.trace.push(|| "the image is locked".into());
            let is_in_use = self.units.iter().any(|unit| unit.host.lock().has_orphaned_calls());
            return if is_in_use { Ok(false) } else { Err("the image stays locked".into()) };
        }
        self.units.iter_mut().try_for_each(Unit::check_by_successor)?;
        Ok(true)
    }
}
