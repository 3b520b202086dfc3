//! A guest that QEMU emulates on this machine, for scenarios with QEMU as the monitor and without
//! KVM.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::console::Console;
use super::guest::BOOT_TIMEOUT;
use super::logs::tail;
use super::products::Lab;
use super::program::target_folder;
use super::qemu;
use fixtures::OwnedChild;
use fixtures::wait_for;

/// A guest under QEMU's TCG, killed when dropped.
pub struct EmulatedGuest {
    _child: OwnedChild,
    console: Console,
    logs: PathBuf,
    _folder: tempfile::TempDir,
}

impl EmulatedGuest {
    /// Starts the lab's small guest with two processors, 256 MiB of shared memory, and `more`
    /// appended to QEMU's command line; waits until its agent is ready. Logs go to
    /// `target/lab/NAME`.
    pub fn start(name: &str, more: &[String]) -> Result<Self> {
        let lab = Lab::find()?;
        let logs = target_folder().join("lab").join(name);
        fs::create_dir_all(&logs)?;
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("console.sock");
        let log = File::create(logs.join("qemu.log"))?;
        let child = OwnedChild(
            qemu::command(&lab.root)
                .args([
                    "-accel",
                    "tcg",
                    "-M",
                    "q35,memory-backend=memory",
                    "-smp",
                    "2",
                    "-m",
                    "256M",
                ])
                .args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
                .args(["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"])
                .arg("-kernel")
                .arg(lab.kit.join("vmlinuz"))
                .arg("-initrd")
                .arg(lab.kit.join("initramfs"))
                .arg("-serial")
                .arg(format!("unix:{},server=on,wait=on", socket.display()))
                .args(more)
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("starting QEMU")?,
        );
        let stream = wait_for(|| UnixStream::connect(&socket).ok());
        let Some(stream) = stream else {
            bail!("no connection to QEMU's console:\n{}", tail(&logs.join("qemu.log"), 20))
        };
        let console = Console::new("the guest", stream, &logs.join("console.log"))?;
        let guest = Self { _child: child, console, logs, _folder: folder };
        guest.console.wait_line("##READY", BOOT_TIMEOUT)?;
        Ok(guest)
    }

    /// Runs a shell command in the guest; a status other than 0 is an error that contains the
    /// output.
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.console.run(command, Duration::from_secs(120))?;
        output.into_success(command).with_context(|| tail(&self.logs.join("qemu.log"), 20))
    }
}
