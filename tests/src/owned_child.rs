//! A process that ends with its owner, however far that got.

use std::ffi::OsStr;
use std::process::{Child, Command};

/// See the module's documentation. Killed when dropped.
#[derive(Debug)]
pub(crate) struct OwnedChild(pub(crate) Child);

impl Drop for OwnedChild {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command whose process the kernel kills with the thread that starts it, even where that is killed itself and drops
/// nothing. `setpriv` becomes the program.
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
