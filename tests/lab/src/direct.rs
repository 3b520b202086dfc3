//! Whether this machine's own KVM can boot Linux: the only way to know is to try it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cache::Key;
use super::qemu;
use super::recipe::{Lab, tail};
use fixtures::OwnedChild;

const TRY_FOR: Duration = Duration::from_secs(20);

/// Where the verdict on the running kernel's KVM is kept: a folder with a file `yes`, or without it.
pub(super) fn verdict_folder(lab: &Lab) -> Result<PathBuf> {
    let running = fs::read("/proc/version").unwrap_or_default();
    Key::new().bytes(&running).bytes(lab.kernel_version()?.as_bytes()).folder("direct-kvm")
}

/// True when scenarios should run on this machine itself: `BULKHEAD_LAB_MODE`, else what the probe found.
pub(super) fn wanted(lab: &Lab) -> Result<bool> {
    match std::env::var("BULKHEAD_LAB_MODE").as_deref() {
        Ok("direct") => Ok(true),
        Ok("nested") => Ok(false),
        Ok(other) => anyhow::bail!("BULKHEAD_LAB_MODE is \"{other}\"; it can be direct or nested"),
        Err(_) => Ok(verdict_folder(lab)?.join("yes").exists()),
    }
}

/// Boots a guest with QEMU on this machine's KVM and writes down whether it came up.
pub(super) fn probe(lab: &Lab, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let log = File::create(out.join("qemu.log"))?;
    let console = out.join("console.log");
    let qemu = qemu::command(&lab.root)
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-M",
            "q35",
            "-m",
            "256M",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args(["-no-reboot", "-append", "console=ttyS0 quiet panic=-1 bulkhead.once"])
        .arg("-kernel")
        .arg(lab.kit.join("vmlinuz"))
        .arg("-initrd")
        .arg(lab.kit.join("initramfs"))
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut child = OwnedChild(qemu);
    let deadline = Instant::now() + TRY_FOR;
    while child.0.try_wait()?.is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    drop(child);
    if tail(&console, 100).contains("GUEST-UP") {
        File::create(out.join("yes"))?;
    }
    Ok(())
}
