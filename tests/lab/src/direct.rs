//! Whether this machine's own KVM can boot Linux: found out by booting a guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cache::Key;
use super::logs::tail;
use super::products::Lab;
use super::qemu;
use fixtures::OwnedChild;

/// Time limit of the probe's boot.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Folder of the probe's result for the running kernel: contains the file `yes` if a guest booted.
pub(super) fn probe_folder(lab: &Lab) -> Result<PathBuf> {
    let running = fs::read("/proc/version").unwrap_or_default();
    Key::new().bytes(&running).bytes(lab.kernel_version()?.as_bytes()).folder("direct-kvm")
}

/// Whether scenarios run on this machine itself: `BULKHEAD_LAB_MODE`, else the probe's result.
pub(super) fn is_enabled(lab: &Lab) -> Result<bool> {
    match std::env::var("BULKHEAD_LAB_MODE").as_deref() {
        Ok("direct") => Ok(true),
        Ok("nested") => Ok(false),
        Ok(other) => anyhow::bail!("BULKHEAD_LAB_MODE is \"{other}\": it must be direct or nested"),
        Err(_) => Ok(probe_folder(lab)?.join("yes").exists()),
    }
}

/// Boots a guest with QEMU on this machine's KVM and records in `out` whether it came up.
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
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while child.0.try_wait()?.is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    drop(child);
    if tail(&console, 100).contains("GUEST-UP") {
        File::create(out.join("yes"))?;
    }
    Ok(())
}
