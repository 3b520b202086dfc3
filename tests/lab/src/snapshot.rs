//! The snapshot of a booted L1, from which a scenario starts in about half a second.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cache::Key;
use super::console::Console;
use super::logs::tail;
use super::products::Lab;
use super::qemu::{self, Machine, Start};

/// Script run in L1 before it is saved: warms the page cache for all scenarios.
const PREPARE: &str = "cat /usr/bin/{socat,qemu-system-x86_64} >/dev/null
mkfs.ext4 -q -O ^has_journal -m 0 -E lazy_itable_init=1 /tmp/warm-up 8M; rm /tmp/warm-up
blockdev --flushbufs /dev/vdb /dev/vdc /dev/vdd /dev/vde; test -c /dev/kvm && pgrep -x idle-vcpus";

/// Inputs of a snapshot in addition to the image.
pub(super) fn key() -> Key {
    Key::new().bytes(qemu::shape().as_bytes()).bytes(PREPARE.as_bytes())
}

/// Boots L1 and saves its state in the new folder `out`.
pub(super) fn take(lab: &Lab, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let mut machine = Machine::start(lab, Start::Cold, out)?;
    let console = Console::new(
        "the lab's host",
        machine.command_port.try_clone()?,
        &out.join("commands.log"),
    )?;
    let ready = console.wait_line("##READY", Duration::from_secs(180));
    ready.with_context(|| {
        format!("its console ends with:\n{}", tail(&out.join("console.log"), 10))
    })?;
    let output = console.run(PREPARE, Duration::from_secs(60))?;
    anyhow::ensure!(output.status == 0, "preparing the lab's host failed: {}", output.text);
    machine.save(&out.join("state"))
}
