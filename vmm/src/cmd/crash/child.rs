//! Processes of the commands.

use std::process::Child;

use rustix::process::{Pid, Signal, kill_process_group};

/// A process that is killed when this is dropped, with its process group, which it leads.
pub(super) struct KilledOnDrop(pub(super) Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
