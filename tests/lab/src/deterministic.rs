//! An L1 in emulated time (`-icount`): its measurements are reproducible, to the digit unless they
//! wait for a disk of the host.
//!
//! It boots from the kernel and runs unattended. Files go in as a tar on its inbox disk, the output
//! comes back as one on its outbox disk. About three times slower than a restored L1.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::console::Output;
use super::host::Host;
use super::logs::{fresh_logs, tail};
use super::products::Lab;
use super::qemu::{Machine, Start, Variant};

/// Starts of a machine that hangs. With `-icount`, QEMU's SVM hangs at times, under any virtual
/// machine monitor (docs/lab.md).
const ATTEMPTS: u32 = 4;

impl Host {
    /// Boots an L1 in emulated time, runs `script` in it with `files` (local path, name) in its
    /// folder, and returns its output. A machine without console output for `patience` counts as
    /// hung and is started again.
    pub fn deterministic(
        name: &str,
        files: &[(&Path, &str)],
        script: &str,
        patience: Duration,
    ) -> Result<Output> {
        let lab = Lab::find()?;
        let logs = fresh_logs(name)?;
        let staging = tempfile::tempdir()?;
        fs::write(staging.path().join("script"), script)?;
        for (local, name) in files {
            fs::copy(local, staging.path().join(name))
                .with_context(|| format!("reading {}", local.display()))?;
            let mode = fs::metadata(local)?.permissions().mode();
            fs::set_permissions(staging.path().join(name), fs::Permissions::from_mode(mode))?;
        }
        let archive = tempfile::NamedTempFile::new()?;
        tar(Command::new("tar")
            .arg("-cf")
            .arg(archive.path())
            .arg("-C")
            .arg(staging.path())
            .arg("."))?;

        let machine = (1..=ATTEMPTS).find_map(|attempt| {
            let machine = Machine::start_unattended(&lab, &logs, archive.path());
            let off = machine.and_then(|mut machine| Ok(machine.wait_off(patience)?.then_some(machine)));
            if let Ok(None) = off {
                let console = tail(&logs.join("console.log"), 3);
                eprintln!("lab: {name}: the emulated machine hangs, attempt {attempt} of {ATTEMPTS}; its console:\n{console}");
            }
            off.transpose()
        });
        let machine = machine.with_context(|| format!("the machine hung {ATTEMPTS} times"))??;
        let read = |file: &str| -> Result<String> {
            tar(Command::new("tar")
                .arg("-xOf")
                .arg(machine.disk("outbox"))
                .arg(format!("./{file}")))
            .with_context(|| {
                format!(
                    "the machine left no {file}; its console:\n{}",
                    tail(&logs.join("console.log"), 25)
                )
            })
        };
        Ok(Output { status: read("status")?.trim().parse()?, text: read("output")? })
    }
}

impl Machine {
    /// Starts an unattended machine whose inbox holds `archive`.
    fn start_unattended(lab: &Lab, logs: &Path, archive: &Path) -> Result<Self> {
        let dir = Self::data_disks()?;
        fs::copy(archive, dir.path().join("inbox"))?;
        File::options().write(true).open(dir.path().join("inbox"))?.set_len(1 << 30)?;
        Self::start_in(lab, Start::Deterministic, logs, dir, Variant::default())
    }
}

fn tar(command: &mut Command) -> Result<String> {
    let output = command.output().context("running tar")?;
    ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
