//! Hosts for power cuts: the scratch disk of L1 is served by the harness, which decides what of it
//! survives; a host with its guest is saved once and restored for each cut.

use std::path::Path;

use anyhow::{Result, bail};

use super::host::{Host, HostKind};
use super::logs::fresh_logs;
use super::products::Lab;
use super::qemu::Variant;

impl Host {
    /// Starts an emulated host for the scenario `name`. Its disk `scratch` is the export `export`
    /// of the NBD server on the unix socket `socket`. It is restored from `state`, which
    /// [`Host::save`] made, or from the lab's snapshot.
    pub fn start_served(
        name: &str,
        socket: &Path,
        export: &str,
        state: Option<&Path>,
    ) -> Result<Self> {
        let lab = Lab::find()?;
        let logs = fresh_logs(name)?;
        let variant = Variant { state, scratch: Some((socket, export)) };
        Self::with_kind(HostKind::nested(&lab, &logs, variant)?, lab, logs)
    }

    /// Stops the host and saves it, with its guests, to the file `state`. Flushes its disks: a
    /// restored host needs them as they are then.
    pub fn save(&self, state: &Path) -> Result<()> {
        match &self.kind {
            HostKind::Nested { machine, .. } => machine.borrow_mut().save(state),
            HostKind::Direct { .. } => bail!("this machine cannot be saved"),
        }
    }

    /// Kills the emulator: all that its memory has is lost, as by a power cut.
    pub fn cut_power(&self) -> Result<()> {
        match &self.kind {
            HostKind::Nested { machine, .. } => machine.borrow_mut().kill(),
            HostKind::Direct { .. } => bail!("the power of this machine is not cut"),
        }
    }
}
