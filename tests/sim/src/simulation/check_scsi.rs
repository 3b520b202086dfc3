//! Checks of each SCSI command that has ended.
//!
//! Durable is a write with FUA, a write that ends while the write cache is off, and each write that
//! ended before a MODE SELECT switched it off. What a READ with FUA returns is on the medium, and
//! what a VERIFY compared is if its write had ended before.

use block::CacheMode;

use super::check::LATENCY_LIMIT;
use super::unit::Unit;
use crate::content::{SECTOR, Value};
use crate::oracle::Time;
use crate::queue_driver::{Completed, NO_ANSWER};
use crate::scsi_command::{Command, CommandKind, End, Function, has_cache};
use crate::scsi_state::may_be_aborted;

/// Sense keys.
mod key {
    pub(super) const MEDIUM_ERROR: u8 = 3;
    pub(super) const UNIT_ATTENTION: u8 = 6;
    pub(super) const DATA_PROTECT: u8 = 7;
    pub(super) const MISCOMPARE: u8 = 14;
}

/// Additional sense codes WRITE ERROR, also of a flush, and LOGICAL UNIT NOT SUPPORTED.
const WRITE_ERROR: u8 = 0x0c;
const NO_SUCH_UNIT: u8 = 0x25;

impl Unit {
    /// Checks the response, the latency and the data of a command.
    pub(super) fn check_command(
        &mut self,
        at: usize,
        completed: Completed<Command>,
        functions: &[Function],
    ) -> Result<(), String> {
        let Completed { expectation: command, since_ns, answer, data, written, writable } =
            completed;
        if answer[11] == NO_ANSWER {
            return Err(format!("{command} is used without a response"));
        }
        let end = End::decode(&answer).map_err(|error| format!("{command}: {error}"))?;
        let took_ns = {
            let host = self.host.lock();
            host.log(|| format!("driver {at} sees {end:?} of {command}"));
            host.now_ns - since_ns
        };
        // A flush of a layered disk writes its map.
        let changes = !command.changes().is_empty() || self.plan.chain.is_some();
        self.check_latency(&command, changes, took_ns)?;
        self.cache_on_ended(&command.kind);
        match end {
            End::Good if writable > answer.len() && written != writable => {
                Err(format!("{command}: {written} of {writable} bytes are written"))
            }
            End::Good => self.check_good(command, &data),
            End::Aborted(response) => {
                if !may_be_aborted(functions, &command, response) {
                    return Err(format!("{command} is aborted with response {response}"));
                }
                self.counts.aborted += 1;
                self.end_partly(&command);
                self.check_abort_time(&command, functions)
            }
            End::Check { key: key::UNIT_ATTENTION, .. } => self.check_attention(&command),
            End::BadTarget | End::Check { code: NO_SUCH_UNIT, .. }
                if self.detached > Some(command.offered) =>
            {
                self.end_partly(&command);
                Ok(())
            }
            End::Check { key: key::MISCOMPARE, information, .. } => {
                let offset = information.ok_or("a miscompare without an offset")? as usize;
                self.check_miscompare(command, offset)
            }
            End::Check { key: key::MEDIUM_ERROR | key::DATA_PROTECT, code, .. } => {
                if self.host.lock().faults == 0 && !self.may_fail_with_enospc(changes, took_ns) {
                    return Err(format!("{command} fails although no fault was injected"));
                }
                self.check_failed(&command, code)
            }
            End::BadTarget | End::Check { .. } => Err(format!("{command} ends with {end:?}")),
        }
    }

    /// A MODE SELECT with WCE=1 has ended, whatever its end is.
    fn cache_on_ended(&mut self, kind: &CommandKind) {
        if matches!(kind, CommandKind::SelectCache(true)) {
            self.scsi.cache_ons -= 1;
            self.scsi.cache_on_until = self.now;
        }
    }

    /// The write cache was off, and held no data, when a command took effect that was submitted at
    /// `offered`. It is off now unless another command may have switched it on meanwhile.
    fn cache_was_off(&mut self, offered: Time) {
        self.oracle.mark_durable_before(offered);
        if self.scsi.cache_ons == 0 && self.scsi.cache_on_until < offered {
            self.oracle.mark_durable_before(self.now);
            self.cache_off_since.get_or_insert(self.now);
        }
    }

    fn check_good(&mut self, command: Command, data: &[u8]) -> Result<(), String> {
        let (offered, lost_data) = (command.offered, self.host.lock().lost_data());
        let is_off = self.cache_off_since.is_some();
        match command.kind {
            CommandKind::Read { first, read, fua } => {
                for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
                    self.oracle.check_read(&read, sector, bytes, lost_data)?;
                    if fua && let Some(value) = Value::of(bytes, sector) {
                        // A volume is zeroed by two discards: a flush between them does not help.
                        let is_first = value == Value::Zero && self.plan.is_volume();
                        let limit = is_first.then_some(offered);
                        self.oracle.medium_held(&read, sector, value, limit, lost_data);
                    }
                }
                self.counts.fua_reads += u64::from(fua);
                if fua { self.oracle.check_flush(offered) } else { Ok(()) }
            }
            CommandKind::Change { ops, fua } => {
                for op in ops {
                    self.oracle.complete(op, true, fua || is_off, self.now);
                }
                Ok(())
            }
            CommandKind::Compare { compare, fua } => {
                self.counts.compared += 1;
                self.oracle.compare_succeeded(&compare, fua || is_off, lost_data, self.now)
            }
            CommandKind::Verify { first, read, expected } => {
                if !lost_data {
                    self.oracle.check_equal(&read, &expected)?;
                }
                for (sector, value) in (first..).zip(expected) {
                    self.oracle.medium_held(&read, sector, value, Some(offered), lost_data);
                }
                self.oracle.check_flush(offered)
            }
            CommandKind::WriteAndVerify { op } => {
                self.oracle.complete(op, true, true, self.now);
                Ok(())
            }
            CommandKind::Synchronize => self.oracle.flush_succeeded(offered),
            CommandKind::SelectCache(true) | CommandKind::TestReady => Ok(()),
            CommandKind::SelectCache(false) => {
                self.counts.cache_offs += 1;
                self.oracle.check_flush(offered)?;
                self.cache_was_off(offered);
                Ok(())
            }
            CommandKind::SenseCache if has_cache(data) => Ok(()),
            CommandKind::SenseCache => {
                self.cache_was_off(offered);
                Ok(())
            }
        }
    }

    /// An aborted command is not held for space: it ends as soon as the host has answered.
    fn check_abort_time(&self, command: &Command, functions: &[Function]) -> Result<(), String> {
        if self.plan.chain.is_some() && self.plan.hold.is_some() && self.scsi.has_cache_off {
            // A switch of the write cache cannot be cancelled. Its flush of a layered disk may be
            // held with the map, and the functions after it wait.
            return Ok(());
        }
        let aborts = functions.iter().filter(|function| {
            function.abort().is_some() && function.selects(command) && function.ended.is_none()
        });
        let since_ns = aborts.map(|function| function.offered_ns).min();
        let host = self.host.lock();
        let took_ns = since_ns.map_or(0, |since_ns| host.now_ns - since_ns).min(host.running_ns());
        if u128::from(took_ns) > LATENCY_LIMIT.as_nanos() {
            return Err(format!("{command} ends {} ms after its abort", took_ns / 1_000_000));
        }
        Ok(())
    }

    /// The changes of a command may have taken effect in any part.
    fn end_partly(&mut self, command: &Command) {
        for op in command.changes() {
            self.oracle.complete(op, false, false, self.now);
        }
    }

    /// A command that reports a unit attention condition is not executed.
    fn check_attention(&mut self, command: &Command) -> Result<(), String> {
        let left = self.scsi.attentions.checked_sub(1);
        self.scsi.attentions =
            left.ok_or_else(|| format!("{command} reports a unit attention without a reset"))?;
        for op in command.changes() {
            self.oracle.cancel(op, self.now);
        }
        Ok(())
    }

    fn check_miscompare(&mut self, command: Command, offset: usize) -> Result<(), String> {
        let lost_data = self.host.lock().lost_data();
        self.counts.miscompared += 1;
        match command.kind {
            CommandKind::Compare { compare, .. } => {
                self.oracle.compare_failed(&compare, offset, lost_data, self.now)
            }
            CommandKind::Verify { read, expected, .. } if !expected.is_empty() => {
                self.oracle.check_difference(&read, &expected, offset, lost_data)
            }
            // Another command has changed what it wrote.
            CommandKind::WriteAndVerify { op } if self.oracle.has_concurrent(op) || lost_data => {
                self.oracle.complete(op, false, false, self.now);
                Ok(())
            }
            _ => Err("a miscompare of a command that compares nothing else".into()),
        }
    }

    /// The host has failed a step of a command.
    fn check_failed(&mut self, command: &Command, code: u8) -> Result<(), String> {
        self.counts.failed += 1;
        self.end_partly(command);
        let is_flush = match &command.kind {
            CommandKind::Synchronize | CommandKind::SelectCache(false) => true,
            CommandKind::Read { .. } | CommandKind::Verify { .. } => code == WRITE_ERROR,
            CommandKind::Change { .. }
            | CommandKind::Compare { .. }
            | CommandKind::WriteAndVerify { .. } => false,
            CommandKind::SelectCache(true) | CommandKind::SenseCache | CommandKind::TestReady => {
                return Err(format!("{command} fails although it does no I/O"));
            }
        };
        if !is_flush || self.plan.mode == CacheMode::Unsafe {
            return Ok(());
        }
        let lost_data = self.host.lock().lost_data();
        if self.plan.chain.is_some() && !lost_data {
            // The map was not written, and will be by the next flush.
            return Ok(());
        }
        if self.plan.mode.is_direct() && !lost_data {
            return Err(format!("{command} fails although each fdatasync has succeeded"));
        }
        self.oracle.flush_failed(self.now);
        Ok(())
    }
}
