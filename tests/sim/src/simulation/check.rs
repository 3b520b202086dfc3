//! Checks of each completion, and of the device after each step.

use std::fmt;
use std::time::Duration;

use block::{Backend, CacheMode};
use driver::status;

use super::Simulation;
use super::unit::Unit;
use crate::block_request::Expectation;
use crate::content::SECTOR;
use crate::expected::Expected;
use crate::front::SERIAL;
use crate::queue_driver::{Completed, NO_ANSWER, QueueDriver};

/// Limit of a request's latency, without the time for which it may be held for ENOSPC. Requests
/// queue for blocks and for bounce memory before their first call and before each retry.
pub(super) const LATENCY_LIMIT: Duration = Duration::from_secs(2);

impl Simulation<'_> {
    /// Checks a completed request.
    pub(super) fn check_completion(
        &mut self,
        at: usize,
        completed: Completed<Expected>,
    ) -> Result<(), String> {
        let Completed { expectation, since_ns, answer, data, written, writable } = completed;
        match expectation {
            Expected::Block(expectation) => {
                let &[status] = answer.as_slice() else { return Err("no status".into()) };
                if status == NO_ANSWER {
                    return Err(format!("{expectation} is used without a status"));
                }
                if status == 0 && written != writable {
                    return Err(format!("{written} of {writable} bytes are written"));
                }
                self.units[0].check_request(at, expectation, since_ns, status, &data)
            }
            Expected::Scsi(command) => {
                let unit = command.unit;
                let is_stopped =
                    |other: &Unit| other.plan.unit != unit && other.host.lock().is_frozen();
                let is_beside_stopped = self.units.iter().any(is_stopped);
                self.counts.overtakes += u64::from(is_beside_stopped);
                let ended =
                    Completed { expectation: command, since_ns, answer, data, written, writable };
                self.units[unit].check_command(at, ended, &self.scsi.functions)
            }
        }
    }

    /// Checks conditions that hold after each step.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        if self.status.get() & status::NEEDS_RESET != 0 {
            return Err("the device needs a reset".into());
        }
        let outstanding: usize = self.drivers.iter().map(QueueDriver::outstanding).sum();
        let held: usize = self.units.iter().map(Unit::held).sum();
        if held > outstanding {
            return Err(format!("{held} requests are held, but {outstanding} are outstanding"));
        }
        let violation = |unit: &Unit| unit.host.lock().violation.clone().map_or(Ok(()), Err);
        self.units.iter().try_for_each(violation)
    }
}

impl Unit {
    /// Requests that are held for space.
    fn held(&self) -> usize {
        let held = self.disk.as_ref().and_then(|disk| disk.status().enospc_hold);
        held.map_or(0, |held| held.requests as usize)
    }

    /// Checks status, latency and data of a completed virtio-blk request.
    fn check_request(
        &mut self,
        at: usize,
        expectation: Expectation,
        since_ns: u64,
        status: u8,
        data: &[u8],
    ) -> Result<(), String> {
        let succeeded = status == 0;
        let (faults, lost_data, took_ns) = {
            let host = self.host.lock();
            host.log(|| format!("driver {at} sees status {status} of {expectation}"));
            (host.faults, host.lost_data(), host.now_ns - since_ns)
        };
        self.counts.failed += u64::from(!succeeded);
        let changes = matches!(expectation, Expectation::Change { .. });
        let is_flush = matches!(expectation, Expectation::Flush { .. });
        // A flush of a layered disk writes its map.
        let changes = changes || self.plan.chain.is_some() && is_flush;
        if !succeeded && faults == 0 && !self.may_fail_with_enospc(changes, took_ns) {
            return Err(format!(
                "{expectation} fails with status {status} although no fault was injected"
            ));
        }
        self.check_latency(&expectation, changes, took_ns)?;
        match expectation {
            Expectation::Read { first, read } if succeeded => {
                for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
                    self.oracle.check_read(&read, sector, bytes, lost_data)?;
                }
            }
            Expectation::Change { op, offered } => {
                let durable = self.cache_off_since.is_some_and(|since| since <= offered);
                self.oracle.complete(op, succeeded, durable, self.now);
            }
            Expectation::Flush { .. } if self.plan.mode == CacheMode::Unsafe => {}
            Expectation::Flush { offered } if succeeded => self.oracle.flush_succeeded(offered)?,
            // The map was not written, and will be by the next flush.
            Expectation::Flush { .. } if self.plan.chain.is_some() && !lost_data => {}
            Expectation::Flush { .. } if self.plan.mode.is_direct() && !lost_data => {
                return Err(format!("{expectation} fails although each fdatasync has succeeded"));
            }
            Expectation::Flush { .. } => self.oracle.flush_failed(self.now),
            Expectation::Id if succeeded && !data.starts_with(SERIAL.as_bytes()) => {
                return Err("the serial number is wrong".into());
            }
            Expectation::Read { .. } | Expectation::Id => {}
        }
        Ok(())
    }

    /// Whether a request may fail with ENOSPC: it changes the disk and was held until its deadline.
    pub(super) fn may_fail_with_enospc(&self, changes: bool, took_ns: u64) -> bool {
        let has_waited = |deadline: Duration| u128::from(took_ns) >= deadline.as_nanos();
        // A detached disk holds no requests.
        let host = self.host.lock();
        let was_detached = self.detached_ns.is_some_and(|at_ns| at_ns >= host.now_ns - took_ns);
        let may_fail = |deadline| has_waited(deadline) || was_detached;
        host.space_faults > 0 && changes && self.plan.hold.is_some_and(may_fail)
    }

    /// Only changes of the disk are held for space, and only until their deadline. The time for
    /// which the host was stopped does not count.
    pub(super) fn check_latency(
        &self,
        request: &dyn fmt::Display,
        changes: bool,
        took_ns: u64,
    ) -> Result<(), String> {
        let (now_ns, running_ns) = {
            let host = self.host.lock();
            (host.now_ns, host.running_ns())
        };
        // A detached disk holds no requests.
        let since_detach_ns = self.detached_ns.map(|at_ns| now_ns - at_ns);
        let since_detach_ns = since_detach_ns.filter(|since_ns| *since_ns <= took_ns);
        let took_ns = took_ns.min(running_ns).min(since_detach_ns.unwrap_or(u64::MAX));
        let held = self.plan.hold.filter(|_| changes && since_detach_ns.is_none());
        // Each step of a change of a layered disk may be held, and those of the changes for whose
        // blocks it waits.
        let steps = if self.plan.chain.is_some() { 16 } else { 1 };
        let limit = held.unwrap_or_default() * steps + LATENCY_LIMIT;
        if u128::from(took_ns) > limit.as_nanos() {
            return Err(format!("{request} took {} ms", took_ns / 1_000_000));
        }
        Ok(())
    }
}
