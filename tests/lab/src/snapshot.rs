//! Boots L1 once and saves it, ready for commands, so that every later scenario starts in about half a second.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::cache::Key;
use super::console::Console;
use super::qemu::{self, Machine, Start};
use super::recipe::Lab;

/// Runs in L1 before it is saved: what every scenario would otherwise wait for again.
const PREPARE: &str = "cat /usr/bin/{socat,qemu-system-x86_64} >/dev/null
mkfs.ext4 -q -O ^has_journal -m 0 -E lazy_itable_init=1 /tmp/warm-up 8M; rm /tmp/warm-up
blockdev --flushbufs /dev/vdb /dev/vdc /dev/vdd /dev/vde; test -c /dev/kvm";

/// What a snapshot depends on beyond the image.
pub(super) fn key() -> Key {
    Key::new().bytes(qemu::shape().as_bytes()).bytes(PREPARE.as_bytes())
}

/// Makes the snapshot in the new folder `out`.
pub(super) fn take(lab: &Lab, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let mut machine = Machine::start(lab, Start::Cold, out)?;
    let console = Console::new(
        "the lab's host",
        machine.command_port.try_clone()?,
        &out.join("commands.log"),
    )?;
    console.wait_line("##READY", Duration::from_secs(180))?;
    let output = console.run(PREPARE, Duration::from_secs(60))?;
    anyhow::ensure!(output.status == 0, "preparing the lab's host failed: {}", output.text);
    machine.save(&out.join("state"))
}
