//! The machine that runs `bulkhead` in a scenario: a restored L1, or this machine if its KVM boots
//! Linux.
//!
//! Scenarios copy files to it, run commands and start guests the same way on both kinds. File names
//! are relative to a folder of the run, which is removed with the host; `path` returns the full
//! path.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::console::{Console, Output, abridged};
use super::direct;
use super::logs::{fresh_logs, tail};
use super::products::Lab;
use super::program::bulkhead_binary;
use super::qemu::{Machine, Start, Variant};
use fixtures::OwnedChild;

/// Default time limit of a command. L1 is about 17 times slower than a real machine; only a failing
/// scenario waits this long.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(400);
const MIB: u64 = 1 << 20;

pub(super) enum HostKind {
    Nested { machine: Box<RefCell<Machine>>, console: Console },
    Direct { dir: tempfile::TempDir },
}

impl HostKind {
    /// A restored L1.
    pub(super) fn nested(lab: &Lab, logs: &Path, variant: Variant<'_>) -> Result<Self> {
        let disks = Machine::data_disks()?;
        let machine = Machine::start_in(lab, Start::Restored, logs, disks, variant)?;
        let port = machine.command_port.try_clone()?;
        let console = Console::new("the lab's host", port, &logs.join("commands.log"))?;
        Ok(Self::Nested { machine: Box::new(RefCell::new(machine)), console })
    }
}

/// The machine a scenario runs on.
pub struct Host {
    pub(super) kind: HostKind,
    pub(super) lab: Lab,
    logs: PathBuf,
    pub(super) ports_in_use: RefCell<Vec<usize>>,
}

impl Host {
    /// Starts a host for the scenario `name`, with logs in `target/lab/NAME`.
    pub fn start(name: &str) -> Result<Self> {
        let lab = Lab::find()?;
        let logs = fresh_logs(name)?;
        let kind = if direct::is_enabled(&lab)? {
            HostKind::Direct { dir: tempfile::Builder::new().prefix("bulkhead-lab-").tempdir()? }
        } else {
            HostKind::nested(&lab, &logs, Variant::default())?
        };
        Self::with_kind(kind, lab, logs)
    }

    pub(super) fn with_kind(kind: HostKind, lab: Lab, logs: PathBuf) -> Result<Self> {
        let host = Self { kind, lab, logs, ports_in_use: RefCell::default() };
        host.run(&format!("mkdir -p {}", host.path("")))?;
        Ok(host)
    }

    /// Whether the host is this machine.
    pub fn is_direct(&self) -> bool {
        matches!(self.kind, HostKind::Direct { .. })
    }

    /// Folder of this scenario's logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Full path on the host of a file in the run's folder.
    pub fn path(&self, name: &str) -> String {
        match &self.kind {
            HostKind::Nested { .. } => format!("/run/lab/{name}"),
            HostKind::Direct { dir } => dir.path().join(name).display().to_string(),
        }
    }

    /// Full path on the host of a file of the guest kit: `vmlinux`, `vmlinuz`, `initramfs`,
    /// `initramfs-tools`.
    pub fn kit(&self, name: &str) -> String {
        match &self.kind {
            HostKind::Nested { .. } => format!("/l2/{name}"),
            HostKind::Direct { .. } => self.lab.kit.join(name).display().to_string(),
        }
    }

    /// Runs a shell command; a status other than 0 is an error that contains the output.
    pub fn run(&self, command: &str) -> Result<String> {
        self.run_for(command, COMMAND_TIMEOUT)
    }

    /// As `run`, with the time limit `timeout`.
    pub fn run_for(&self, command: &str, timeout: Duration) -> Result<String> {
        self.try_run_for(command, timeout)?.into_success(command)
    }

    /// Runs a shell command and returns its output and status.
    pub fn try_run(&self, command: &str) -> Result<Output> {
        self.try_run_for(command, COMMAND_TIMEOUT)
    }

    /// As `try_run`, with the time limit `timeout`.
    pub fn try_run_for(&self, command: &str, timeout: Duration) -> Result<Output> {
        match &self.kind {
            HostKind::Nested { console, .. } => console.run(command, timeout),
            HostKind::Direct { dir } => run_here(command, dir.path(), timeout),
        }
    }

    /// Copies a local file to the run's folder and returns its full path there.
    pub fn put(&self, local: &Path, name: &str) -> Result<String> {
        let to = self.path(name);
        let HostKind::Nested { machine, .. } = &self.kind else {
            fs::copy(local, &to).with_context(|| format!("copying {} to {to}", local.display()))?;
            return Ok(to);
        };
        let size = fs::copy(local, machine.borrow().disk("inbox"))
            .with_context(|| format!("reading {}", local.display()))?;
        let inbox = File::options().write(true).open(machine.borrow().disk("inbox"))?;
        inbox.set_len(1 << 30)?;
        let mode = fs::metadata(local)?.permissions().mode() & 0o777;
        self.run(&format!(
            "dd if=/dev/disk/by-id/virtio-inbox of={to} iflag=direct bs=1M count={} status=none && truncate -s {size} {to} && chmod {mode:o} {to}",
            size.div_ceil(MIB)
        ))?;
        Ok(to)
    }

    /// Makes the contents of a local file available without a copy in the host's memory, until the
    /// next `put` or `lend`, and returns the full path there: of a larger disk, or of a copy.
    pub fn lend(&self, local: &Path, name: &str) -> Result<String> {
        let HostKind::Nested { machine, .. } = &self.kind else { return self.put(local, name) };
        let inbox = machine.borrow().disk("inbox");
        fs::copy(local, &inbox).with_context(|| format!("reading {}", local.display()))?;
        File::options().write(true).open(inbox)?.set_len(1 << 30)?;
        Ok("/dev/disk/by-id/virtio-inbox".to_owned())
    }

    /// Writes a text file to the run's folder and returns its full path there.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        self.put(file.path(), name)
    }

    /// Copies the file of the host with the full path `remote` to a local file.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let HostKind::Nested { machine, .. } = &self.kind else {
            fs::copy(remote, local).with_context(|| format!("copying {remote}"))?;
            return Ok(());
        };
        let size: u64 = self
            .run(&format!("stat -c %s {remote}"))?
            .trim()
            .parse()
            .context("reading its size")?;
        ensure!(size <= 1 << 30, "{remote} has {size} bytes: the outbox holds 1 GiB");
        self.run(&format!("dd if={remote} of=/dev/disk/by-id/virtio-outbox oflag=direct iflag=fullblock conv=sync bs=1M status=none"))?;
        let mut outbox = File::open(machine.borrow().disk("outbox"))?.take(size);
        std::io::copy(&mut outbox, &mut File::create(local)?)?;
        Ok(())
    }

    /// Makes a file system for disk images (ext4, xfs, btrfs) and returns its mount point. In L1 it
    /// is on a disk of 8 GiB; on this machine it is the run's folder, on any file system.
    pub fn scratch(&self, file_system: &str) -> Result<String> {
        if self.is_direct() {
            return Ok(self.path(""));
        }
        let force = if file_system == "ext4" { "-F" } else { "-f" };
        self.run(&format!(
            "mkfs.{file_system} -q {force} /dev/disk/by-id/virtio-scratch && mount /dev/disk/by-id/virtio-scratch /scratch"
        ))?;
        Ok("/scratch".to_owned())
    }

    /// Full path of a disk with a stock Debian guest, to be booted as `root=/dev/vda` with the
    /// kit's `initramfs`. Writes to it are discarded after the run.
    pub fn debian(&self) -> Result<String> {
        match &self.kind {
            HostKind::Nested { .. } => Ok("/dev/disk/by-id/virtio-debian".to_owned()),
            HostKind::Direct { .. } => self.put(&self.lab.debian.join("debian.img"), "debian.img"),
        }
    }

    /// Copies the program under test to the host and returns its full path there.
    pub fn put_bulkhead(&self) -> Result<String> {
        self.put(&bulkhead_binary()?, "bulkhead")
    }

    /// Process id of the emulator, for scenarios that cut the power of the host. None on this
    /// machine.
    pub fn emulator_pid(&self) -> Option<u32> {
        match &self.kind {
            HostKind::Nested { machine, .. } => Some(machine.borrow().pid()),
            HostKind::Direct { .. } => None,
        }
    }

    /// A connected virtio-serial port of L1, which bridges a guest's console out of it. None on
    /// this machine.
    pub(super) fn guest_port(
        &self,
        number: usize,
    ) -> Result<Option<std::os::unix::net::UnixStream>> {
        let HostKind::Nested { machine, .. } = &self.kind else { return Ok(None) };
        let machine = machine.borrow();
        Ok(Some(machine.guest_ports.get(number).context("no such guest port")?.try_clone()?))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the scenario failed; logs are in {}", self.logs.display());
            for name in ["commands.log", "console.log", "guest0.log", "guest1.log", "guest2.log"] {
                let text = tail(&self.logs.join(name), 15);
                if !text.is_empty() {
                    eprintln!("--- the end of {name}\n{text}");
                }
            }
        }
    }
}

fn run_here(command: &str, dir: &Path, timeout: Duration) -> Result<Output> {
    let log = tempfile::NamedTempFile::new()?;
    let child = Command::new("bash")
        .arg("-c")
        .arg(command)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.reopen()?)
        .stderr(File::options().append(true).open(log.path())?)
        .spawn()?;
    let mut child = OwnedChild(child);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.0.try_wait()? {
            let text = String::from_utf8_lossy(&fs::read(log.path())?).into_owned();
            return Ok(Output { status: status.code().unwrap_or(-1), text });
        }
        if Instant::now() > deadline {
            bail!(
                "no exit within {} s: {}\n{}",
                timeout.as_secs(),
                abridged(command),
                tail(log.path(), 25)
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
}
