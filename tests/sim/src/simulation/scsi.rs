//! Task management, and the start of the engines of a SCSI controller.

use super::Simulation;
use super::unit::Unit;
use crate::expected::Expected;
use crate::queue_driver::QueueDriver;
use crate::scsi_command::{Command, Function};
use crate::scsi_state::Control;

/// Entries of the control queue.
const CONTROL_ENTRIES: u16 = 4;
impl Simulation<'_> {
    /// Makes the control queue. The first command of each other queue makes its engine, which is
    /// sent here if there is one disk.
    pub(super) fn start_scsi(&mut self, features: u64) -> Result<(), String> {
        let faults = self.fault_reporter();
        let memory = &self.resources.memory;
        let (driver, active) = QueueDriver::new(memory, 0, CONTROL_ENTRIES, features);
        if let Some(round) = self.front().control_rounds(active, faults) {
            self.scsi.control = Some(Control { driver, round, is_asleep: false });
        }
        if self.plan.has_neighbours {
            return Ok(());
        }
        (0..self.workers.len()).try_for_each(|at| self.start_engine(at))
    }

    /// Reads a block on a queue. The first reads may report unit attention conditions.
    fn start_engine(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..=self.units[0].scsi.attentions {
            let unit = &mut self.units[0];
            self.scsi.last_id += 1;
            let (range, id) = ((0, self.plan.block), self.scsi.last_id);
            let (request, command) = unit.read(range, false, &mut self.random, id);
            let (rings, now_ns) = {
                let host = unit.host.lock();
                (host.rings(), host.now_ns)
            };
            let expected = Expected::Scsi(command);
            self.drivers[at].offer(&request, expected, now_ns, &mut self.random);
            let _ = self.drivers[at].publish();
            let _ = self.workers[at].worker.round();
            self.drivers[at].poll_interrupt();
            if self.units[0].host.lock().rings() > rings {
                self.workers[at].ring = (0, rings);
                self.find_levels(at);
                return Ok(());
            }
            self.reap(at)?;
        }
        Err("a read makes no engine".into())
    }

    pub(super) fn may_start_function(&self) -> bool {
        let control = self.scsi.control.as_ref();
        self.scsi.functions_left > 0 && control.is_some_and(|control| control.driver.has_room())
    }

    /// Submits a task management function.
    pub(super) fn start_function(&mut self) {
        let subtype = Function::SUBTYPES[self.random.below(Function::SUBTYPES.len())];
        let task = Function::has_task(subtype).then(|| self.draw_task());
        let unit = self.draw_attached();
        let Unit { address: to, now: offered, .. } = self.units[unit];
        let selects_all = Function::is_of_target(subtype) && self.plan.one_target;
        let (now_ns, ended) = (self.now_ns(), None);
        let function =
            Function { subtype, unit, to, selects_all, task, offered, offered_ns: now_ns, ended };
        let Some(control) = &mut self.scsi.control else { return };
        self.scsi.functions_left -= 1;
        let concerned = self.units.iter_mut().enumerate();
        for (_, unit) in concerned.filter(|(unit, _)| function.concerns(*unit)) {
            unit.scsi.attentions += usize::from(function.resets());
        }
        self.trace.push(|| format!("driver sends function {function:?}"));
        let number = self.scsi.functions.len();
        control.driver.offer(&function.framed(), number, now_ns, &mut self.random);
        self.scsi.functions.push(function);
        if control.driver.publish() {
            control.is_asleep = false;
        }
        self.tick();
    }

    /// The identifier of a command in flight, or mostly so.
    fn draw_task(&mut self) -> u64 {
        let ids: Vec<u64> = self.commands().map(|command| command.id).collect();
        if ids.is_empty() { 0 } else { ids[self.random.below(ids.len())] }
    }

    /// The commands in flight.
    pub(super) fn commands(&self) -> impl Iterator<Item = &Command> {
        let expected = self.drivers.iter().flat_map(QueueDriver::expectations);
        expected.filter_map(|expected| match expected {
            Expected::Scsi(command) => Some(command),
            Expected::Block(_) => None,
        })
    }

    /// Whether the control queue or its driver can take a step.
    pub(super) fn manages_tasks(&self) -> bool {
        self.scsi
            .control
            .as_ref()
            .is_some_and(|control| !control.is_asleep || control.driver.interrupted)
    }

    /// Runs a round of the control queue and reaps its answers.
    pub(super) fn manage_tasks(&mut self) -> Result<(), String> {
        let Some(control) = &mut self.scsi.control else { return Ok(()) };
        if !control.is_asleep {
            control.is_asleep = (control.round)();
        }
        control.driver.poll_interrupt();
        let ended = if control.driver.interrupted { control.driver.reap()? } else { Vec::new() };
        self.forward_kicks();
        for completed in ended {
            self.check_function(completed.expectation, completed.answer[0])?;
        }
        Ok(())
    }

    /// Checks that the driver can see the end of all commands that a function has selected.
    fn check_function(&mut self, number: usize, response: u8) -> Result<(), String> {
        /// Values of a response.
        const COMPLETE: u8 = 0;
        const BAD_TARGET: u8 = 3;
        const SUCCEEDED: u8 = 10;
        const INCORRECT_LUN: u8 = 12;
        let function = self.scsi.functions[number];
        self.trace.push(|| format!("driver sees response {response} of {function:?}"));
        for at in 0..self.drivers.len() {
            self.reap(at)?;
        }
        self.tick();
        self.scsi.functions[number].ended = Some(self.units[0].now);
        // The device may have detached it before it took the function.
        if matches!(response, BAD_TARGET | INCORRECT_LUN)
            && self.units[function.unit].detached > Some(function.offered)
        {
            return Ok(());
        }
        let is_left =
            |command: &&Command| command.offered < function.offered && function.selects(command);
        let left = self.commands().find(is_left);
        match (function.abort(), left, response) {
            (Some(_), None, COMPLETE) | (None, _, SUCCEEDED) | (None, None, COMPLETE) => Ok(()),
            (_, left, _) => {
                let left = left.map_or_else(|| "nothing".into(), ToString::to_string);
                Err(format!("response {response} of {function:?}, with {left} in flight"))
            }
        }
    }
}
