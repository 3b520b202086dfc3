//! The machine that runs `bulkhead` in a scenario: a restored L1, or this machine where its KVM is good enough.
//!
//! Scenarios see one thing: a place to put files, run commands and start guests. Names of files are relative to a folder
//! of the run, and `path` gives the full path, so a scenario leaves nothing behind on either kind of machine.

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
use super::qemu::{Machine, Start};
use super::recipe::{Lab, tail};
use fixtures::OwnedChild;

/// How long a command may take unless the scenario says otherwise. L1 is some 17 times slower than a real machine.
/// Generous: nobody waits for it but who waits for a failure.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(400);
const MIB: u64 = 1 << 20;

pub(super) enum Place {
    Nested { machine: Box<RefCell<Machine>>, console: Console },
    Direct { dir: tempfile::TempDir },
}

impl Place {
    /// A restored L1.
    pub(super) fn nested(lab: &Lab, logs: &Path) -> Result<Self> {
        let machine = Machine::start(lab, Start::Restored, logs)?;
        let port = machine.command_port.try_clone()?;
        let console = Console::new("the lab's host", port, &logs.join("commands.log"))?;
        Ok(Self::Nested { machine: Box::new(RefCell::new(machine)), console })
    }
}

/// The machine a scenario runs on.
pub struct Host {
    place: Place,
    lab: Lab,
    logs: PathBuf,
    pub(super) ports_in_use: RefCell<Vec<usize>>,
}

impl Host {
    /// A host for the scenario `name`, whose logs go to `target/lab/<name>/`.
    pub fn start(name: &str) -> Result<Self> {
        let lab = Lab::find()?;
        let logs = fresh_logs(name)?;
        let place = if direct::wanted(&lab)? {
            Place::Direct { dir: tempfile::Builder::new().prefix("bulkhead-lab-").tempdir()? }
        } else {
            Place::nested(&lab, &logs)?
        };
        Self::in_place(place, lab, logs)
    }

    pub(super) fn in_place(place: Place, lab: Lab, logs: PathBuf) -> Result<Self> {
        let host = Self { place, lab, logs, ports_in_use: RefCell::default() };
        host.run(&format!("mkdir -p {}", host.path("")))?;
        Ok(host)
    }

    /// True when the host is this machine and not an emulated one.
    pub fn is_direct(&self) -> bool {
        matches!(self.place, Place::Direct { .. })
    }

    /// Where this scenario's logs are kept.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Full path on the host of a file of this run.
    pub fn path(&self, name: &str) -> String {
        match &self.place {
            Place::Nested { .. } => format!("/run/lab/{name}"),
            Place::Direct { dir } => dir.path().join(name).display().to_string(),
        }
    }

    /// Full path on the host of a file of the guest kit: `vmlinux`, `vmlinuz`, `initramfs`, `initramfs-tools`.
    pub fn kit(&self, name: &str) -> String {
        match &self.place {
            Place::Nested { .. } => format!("/l2/{name}"),
            Place::Direct { .. } => self.lab.kit.join(name).display().to_string(),
        }
    }

    /// Runs a shell command; an exit status other than zero is an error that shows the output.
    pub fn run(&self, command: &str) -> Result<String> {
        self.run_for(command, COMMAND_TIMEOUT)
    }

    /// Like `run`, with a time limit of its own.
    pub fn run_for(&self, command: &str, timeout: Duration) -> Result<String> {
        self.try_run_for(command, timeout)?.of_success(command)
    }

    /// Runs a shell command and gives its output and status, whatever that is.
    pub fn try_run(&self, command: &str) -> Result<Output> {
        self.try_run_for(command, COMMAND_TIMEOUT)
    }

    /// Like `try_run`, with a time limit of its own.
    pub fn try_run_for(&self, command: &str, timeout: Duration) -> Result<Output> {
        match &self.place {
            Place::Nested { console, .. } => console.run(command, timeout),
            Place::Direct { dir } => run_here(command, dir.path(), timeout),
        }
    }

    /// Copies a local file to the host under a name of this run and gives its full path there.
    pub fn put(&self, local: &Path, name: &str) -> Result<String> {
        let to = self.path(name);
        let Place::Nested { machine, .. } = &self.place else {
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

    /// Writes a text file on the host and gives its full path there.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        self.put(file.path(), name)
    }

    /// Copies a file of the host, by its full path there, to a local one.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let Place::Nested { machine, .. } = &self.place else {
            fs::copy(remote, local).with_context(|| format!("copying {remote}"))?;
            return Ok(());
        };
        let size: u64 = self
            .run(&format!("stat -c %s {remote}"))?
            .trim()
            .parse()
            .context("asking for its size")?;
        ensure!(size <= 1 << 30, "{remote} has {size} bytes; the outbox holds one GiB");
        self.run(&format!("dd if={remote} of=/dev/disk/by-id/virtio-outbox oflag=direct iflag=fullblock conv=sync bs=1M status=none"))?;
        let mut outbox = File::open(machine.borrow().disk("outbox"))?.take(size);
        std::io::copy(&mut outbox, &mut File::create(local)?)?;
        Ok(())
    }

    /// Makes a file system for disk images (ext4, xfs, btrfs) and gives the folder it is mounted on.
    /// In L1 it is on a disk of 8 GiB; on this machine it is a plain folder, whatever it lies on.
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

    /// Full path of a disk with a stock Debian guest, to be booted as `root=/dev/vda` with the kit's `initramfs`.
    /// What is written to it is gone after the run.
    pub fn debian(&self) -> Result<String> {
        match &self.place {
            Place::Nested { .. } => Ok("/dev/disk/by-id/virtio-debian".to_owned()),
            Place::Direct { .. } => self.put(&self.lab.debian.join("debian.img"), "debian.img"),
        }
    }

    /// Puts the `bulkhead` program on the host: the one `BULKHEAD_BIN` names, else a release build of this tree.
    pub fn put_bulkhead(&self) -> Result<String> {
        self.put(&bulkhead_binary()?, "bulkhead")
    }

    /// Process id of the emulator, for scenarios that cut the power of the whole host. None on this machine itself.
    pub fn emulator_pid(&self) -> Option<u32> {
        match &self.place {
            Place::Nested { machine, .. } => Some(machine.borrow().pid()),
            Place::Direct { .. } => None,
        }
    }

    /// A connected virtio-serial port of L1, for bridging a guest's console out of it. None on this machine itself.
    pub(super) fn guest_port(
        &self,
        number: usize,
    ) -> Result<Option<std::os::unix::net::UnixStream>> {
        let Place::Nested { machine, .. } = &self.place else { return Ok(None) };
        let machine = machine.borrow();
        Ok(Some(machine.guest_ports.get(number).context("no such guest port")?.try_clone()?))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the scenario failed; its logs are in {}", self.logs.display());
            for name in ["commands.log", "console.log", "guest0.log", "guest1.log", "guest2.log"] {
                let text = tail(&self.logs.join(name), 15);
                if !text.is_empty() {
                    eprintln!("--- the end of {name}\n{text}");
                }
            }
        }
    }
}

/// The folder of a scenario's logs, without those of its last run.
pub(super) fn fresh_logs(name: &str) -> Result<PathBuf> {
    let logs = target_folder().join("lab").join(name);
    if logs.exists() {
        fs::remove_dir_all(&logs)?;
    }
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    Ok(logs.canonicalize()?)
}

pub(super) fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
}

/// The program under test.
pub fn bulkhead_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "vmm", "--bin", "bulkhead"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "bulkhead does not build");
    Ok(target_folder().join("release/bulkhead"))
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
                "not done within {} s: {}\n{}",
                timeout.as_secs(),
                abridged(command),
                tail(log.path(), 25)
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
}
