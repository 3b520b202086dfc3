//! Death of the process by SIGKILL, and its successor.
//!
//! Without a process only the kernel takes steps, and a successor tries to open the disk. The lock
//! on the image decides when that succeeds.

use super::Simulation;

impl Simulation<'_> {
    /// Kills the process. Its memory and its descriptors are gone, its calls are not.
    pub(super) fn kill(&mut self) {
        self.kills_left -= 1;
        self.counts.kills += 1;
        {
            let mut host = self.host.lock();
            host.log(|| "the process is killed".into());
            host.kill_process();
        }
        self.stop_workers();
        self.device = None;
        for driver in std::mem::take(&mut self.drivers) {
            let changes = driver.into_expectations().flat_map(|expected| expected.changes());
            self.orphans.extend(changes);
        }
    }

    /// A step without a process. Returns whether a successor has opened the disk.
    pub(super) fn step_without_process(&mut self) -> Result<bool, String> {
        match self.random.weighted(&[5, self.plan.weights.write_back, 1]) {
            Some(0) => {
                self.host.lock().step();
                Ok(false)
            }
            Some(1) => {
                self.host.lock().write_back();
                Ok(false)
            }
            _ => self.open_by_successor(),
        }
    }

    /// A successor tries to open the disk. If the lock permits it, it reads the whole disk, as a
    /// guest that recovers its file system.
    fn open_by_successor(&mut self) -> Result<bool, String> {
        if !self.open()? {
            self.counts.refused += 1;
            let mut host = self.host.lock();
            host.log(|| "the image is locked".into());
            let is_in_use = host.has_orphaned_calls();
            return if is_in_use { Ok(false) } else { Err("the image stays locked".into()) };
        }
        self.now += 1;
        for op in std::mem::take(&mut self.orphans) {
            self.oracle.complete(op, false, false, self.now);
        }
        self.now += 1;
        let mut host = self.host.lock();
        host.log(|| "a successor opens the disk".into());
        let lost_data = host.lost_data();
        let visible = |sector| host.medium.visible(sector);
        self.oracle.reopen(visible, lost_data, self.now)?;
        drop(host);
        self.now += 1;
        Ok(true)
    }
}
