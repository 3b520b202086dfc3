//! The state of a SCSI initiator beside its commands in flight.

use super::oracle::Time;
use super::queue_driver::QueueDriver;
use super::scsi_command::{Command, Function};

/// Functions of a schedule.
const FUNCTIONS: usize = 4;

/// The control queue.
pub(super) struct Control {
    /// A request is the function with the index that is expected of it.
    pub(super) driver: QueueDriver<usize>,
    /// A round of the device's loop. Returns whether it would sleep.
    pub(super) round: Box<dyn FnMut() -> bool>,
    pub(super) is_asleep: bool,
}

/// See the module's documentation.
pub(super) struct ScsiState {
    /// Dropped with the workers.
    pub(super) control: Option<Control>,
    /// Identifier of the last command.
    pub(super) last_id: u64,
    pub(super) functions: Vec<Function>,
    pub(super) functions_left: usize,
}

impl ScsiState {
    pub(super) fn new() -> Self {
        Self { control: None, last_id: 0, functions: Vec::new(), functions_left: FUNCTIONS }
    }

    pub(super) fn functions_in_flight(&self) -> usize {
        self.control.as_ref().map_or(0, |control| control.driver.outstanding())
    }

    /// A function may be done: its signal wakes the control queue.
    pub(super) fn wake_control(&mut self) {
        if let Some(control) = &mut self.control {
            control.is_asleep = false;
        }
    }
}

/// The state of a logical unit as its driver knows it.
pub(super) struct UnitState {
    /// Unit attention conditions that commands may report.
    pub(super) attentions: usize,
    /// MODE SELECT commands with WCE=1 in flight.
    pub(super) cache_ons: usize,
    /// When the last of them has ended.
    pub(super) cache_on_until: Time,
    /// A MODE SELECT with WCE=0 was sent.
    pub(super) has_cache_off: bool,
}

impl UnitState {
    /// A process has made the device, and `attentions` conditions may be pending.
    pub(super) fn opened(attentions: usize) -> Self {
        Self { attentions, cache_ons: 0, cache_on_until: 0, has_cache_off: false }
    }

    /// The device was reset. Its write cache stays off if it was, and if a switch was in flight.
    pub(super) fn device_reset(&mut self, now: Time) {
        self.attentions += 1;
        if self.cache_ons > 0 {
            (self.cache_ons, self.cache_on_until) = (0, now);
        }
    }
}

/// Whether one of the functions may have aborted a command with this response.
pub(super) fn may_be_aborted(functions: &[Function], command: &Command, response: u8) -> bool {
    functions.iter().any(|function| {
        function.abort() == Some(response)
            && function.selects(command)
            && function.ended.is_none_or(|ended| command.offered < ended)
    })
}
