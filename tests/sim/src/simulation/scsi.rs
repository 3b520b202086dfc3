//! Task management, and the start of the engines of a SCSI controller.

use super::Simulation;
use crate::expected::Expected;
use crate::queue_driver::QueueDriver;
use crate::scsi_command::{Command, Function};
use crate::scsi_state::Control;

/// Entries of the control queue.
const CONTROL_ENTRIES: u16 = 4;
impl Simulation<'_> {
    /// Makes the control queue. The first command of each other queue makes its engine.
    pub(super) fn start_scsi(&mut self, features: u64) -> Result<(), String> {
        let faults = self.fault_reporter();
        let memory = &self.resources.memory;
        let (driver, active) = QueueDriver::new(memory, 0, CONTROL_ENTRIES, features);
        if let Some(round) = self.front().control_rounds(active, faults) {
            self.scsi.control = Some(Control { driver, round, is_asleep: false });
        }
        (0..self.workers.len()).try_for_each(|at| self.start_engine(at))
    }

    /// Reads a block on a queue. The first reads may report unit attention conditions.
    fn start_engine(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..=self.scsi.attentions {
            let rings = self.host.lock().rings();
            let (request, command) = self.read(0, self.plan.block, false);
            let now_ns = self.host.lock().now_ns;
            let expected = Expected::Scsi(command);
            self.drivers[at].offer(&request, expected, now_ns, &mut self.random);
            let _ = self.drivers[at].publish();
            let _ = self.workers[at].worker.round();
            self.drivers[at].poll_interrupt();
            if self.host.lock().rings() > rings {
                self.workers[at].ring = rings;
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
        let function = Function { subtype, task, offered: self.now, ended: None };
        let Some(control) = &mut self.scsi.control else { return };
        self.scsi.functions_left -= 1;
        self.scsi.attentions += usize::from(function.resets());
        let now_ns = {
            let mut host = self.host.lock();
            host.log(|| format!("driver sends function {function:?}"));
            host.now_ns
        };
        let number = self.scsi.functions.len();
        control.driver.offer(&function.framed(), number, now_ns, &mut self.random);
        self.scsi.functions.push(function);
        if control.driver.publish() {
            control.is_asleep = false;
        }
        self.now += 1;
    }

    /// The identifier of a command in flight, or mostly so.
    fn draw_task(&mut self) -> u64 {
        let ids: Vec<u64> = self.commands().map(|command| command.id).collect();
        if ids.is_empty() { 0 } else { ids[self.random.below(ids.len())] }
    }

    /// The commands in flight.
    fn commands(&self) -> impl Iterator<Item = &Command> {
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
        const SUCCEEDED: u8 = 10;
        let function = self.scsi.functions[number];
        self.host.lock().log(|| format!("driver sees response {response} of {function:?}"));
        for at in 0..self.drivers.len() {
            self.reap(at)?;
        }
        self.now += 1;
        self.scsi.functions[number].ended = Some(self.now);
        let is_left =
            |command: &&Command| command.offered < function.offered && function.selects(command.id);
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
