//! The emulated host machine (L1): QEMU's command line and process.
//!
//! QEMU comes from the cached Debian root and runs through that root's dynamic loader: neither a
//! chroot nor a package of this machine is needed. The command line must be the same at a restore
//! as when the snapshot was taken.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::logs::tail;
use super::products::Lab;
use fixtures::OwnedChild;

/// Guest consoles that can be bridged out of L1 at once.
pub(super) const GUEST_PORTS: usize = 3;
/// Data disks of L1 and their bytes: files go in and out through the first two; the third holds
/// images.
const DISKS: [(&str, u64); 3] = [("inbox", 1 << 30), ("outbox", 1 << 30), ("scratch", 8 << 30)];
/// The machine type.
const MACHINE: &str = "-M q35 -nodefaults -no-user-config -display none -no-reboot";
/// Three processors, of which guests run on the last two (`resources/lab/host/init` says why).
const NESTED: &str = "-accel tcg -cpu EPYC,+svm,+npt,+vgif -smp 3 -m 7G";
const DETERMINISTIC: &str =
    "-accel tcg -cpu EPYC,+svm,+npt,-rdrand,-rdseed -smp 1 -m 4G -icount shift=0 -rtc clock=vm";
const APPEND: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off";

/// How an L1 starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Boots from the kernel, with an agent on the command port.
    Cold,
    /// Restores the snapshot.
    Restored,
    /// Boots from the kernel in emulated time, unattended: runs the script in its inbox.
    Deterministic,
}

/// Differences from the lab's own L1.
#[derive(Clone, Copy, Default)]
pub(super) struct Variant<'path> {
    /// The saved state to restore, instead of the lab's snapshot.
    pub(super) state: Option<&'path Path>,
    /// The unix socket of an NBD server and the name of its export: the disk `scratch`, with the
    /// cache mode `writeback`, so that flushes reach the server.
    pub(super) scratch: Option<(&'path Path, &'path str)>,
}

/// The properties of the machine that a snapshot depends on.
pub(super) fn shape() -> String {
    format!("{MACHINE} {NESTED} {APPEND} {DISKS:?} debian {GUEST_PORTS}")
}

/// A command that runs the cached QEMU.
pub(super) fn command(root: &Path) -> Command {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let path =
        ["", "ceph", "pulseaudio"].map(|dir| libraries.join(dir).display().to_string()).join(":");
    let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    command
        .env("QEMU_MODULE_DIR", libraries.join("qemu"))
        .arg("--library-path")
        .arg(path)
        .arg(root.join("usr/bin/qemu-system-x86_64"))
        .arg("-L")
        .arg(root.join("usr/share/qemu"))
        .arg("-L")
        .arg(root.join("usr/share/seabios"))
        .stdin(Stdio::null());
    command
}

/// Starts a shell that kills QEMU and removes its files when this process ends without running
/// destructors: its input then reaches end of file, because only this process holds the pipe's
/// write end.
fn watchdog(qemu: u32, dir: &Path) -> Result<OwnedChild> {
    let child = Command::new("sh")
        .args(["-c", "read -r _; kill -9 $1; rm -rf \"$2\"", "watchdog", &qemu.to_string()])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting the watchdog of the lab's QEMU")?;
    Ok(OwnedChild(child))
}

/// A running L1, killed when dropped.
pub(super) struct Machine {
    /// Dropped first, before QEMU's process id can be reused.
    _watchdog: OwnedChild,
    child: OwnedChild,
    /// Sockets and data disks of this run, removed with it.
    dir: tempfile::TempDir,
    qmp: BufReader<UnixStream>,
    pub(super) command_port: UnixStream,
    pub(super) guest_ports: Vec<UnixStream>,
    logs: PathBuf,
}

impl Machine {
    /// Starts QEMU with empty data disks. The console and QEMU's messages go to `logs`.
    pub(super) fn start(lab: &Lab, start: Start, logs: &Path) -> Result<Self> {
        Self::start_in(lab, start, logs, Self::data_disks()?, Variant::default())
    }

    /// Makes a folder of empty data disks.
    pub(super) fn data_disks() -> Result<tempfile::TempDir> {
        let dir = tempfile::Builder::new().prefix("bulkhead-lab-").tempdir()?;
        for (name, size) in DISKS {
            File::create(dir.path().join(name))?.set_len(size)?;
        }
        Ok(dir)
    }

    /// As `start`, with the data disks in `dir` and other differences.
    pub(super) fn start_in(
        lab: &Lab,
        start: Start,
        logs: &Path,
        dir: tempfile::TempDir,
        variant: Variant<'_>,
    ) -> Result<Self> {
        fs::create_dir_all(logs)?;
        let names: Vec<String> = ["qmp", "cmd"]
            .iter()
            .map(ToString::to_string)
            .chain((0..GUEST_PORTS).map(|n| format!("guest{n}")))
            .collect();
        let listeners = names
            .iter()
            .map(|name| {
                let listener = UnixListener::bind(dir.path().join(format!("{name}.sock")))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .collect::<Result<Vec<_>>>()?;
        let log = File::create(logs.join("qemu.log"))?;
        let qemu = command(&lab.root)
            .args(arguments(lab, start, dir.path(), logs, variant))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the lab's QEMU")?;
        let mut child = OwnedChild(qemu);
        let watchdog = watchdog(child.0.id(), dir.path())?;
        let accepted: Result<Vec<UnixStream>> =
            listeners.iter().map(|listener| accept(listener, &mut child.0, logs)).collect();
        let mut streams = accepted?.into_iter();
        let (Some(qmp), Some(command_port)) = (streams.next(), streams.next()) else {
            bail!("sockets are missing")
        };
        let guest_ports = streams.collect();
        let mut machine = Self {
            _watchdog: watchdog,
            child,
            dir,
            qmp: BufReader::new(qmp),
            command_port,
            guest_ports,
            logs: logs.to_owned(),
        };
        machine.qmp_reply("greeting")?;
        machine.qmp(r#"{"execute":"qmp_capabilities"}"#)?;
        if start == Start::Restored {
            machine.wait_restored()?;
            machine.qmp(r#"{"execute":"cont"}"#)?;
        }
        Ok(machine)
    }

    /// Sends a QMP command and returns the reply as JSON text.
    pub(super) fn qmp(&mut self, command: &str) -> Result<String> {
        self.qmp
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())
            .context("sending to QEMU's monitor")?;
        self.qmp_reply(command)
    }

    fn qmp_reply(&mut self, command: &str) -> Result<String> {
        self.qmp.get_ref().set_read_timeout(Some(Duration::from_secs(60)))?;
        loop {
            let mut line = String::new();
            if self
                .qmp
                .read_line(&mut line)
                .with_context(|| format!("waiting for QEMU's reply to {command}"))?
                == 0
            {
                bail!(
                    "QEMU exited; the end of its log:\n{}",
                    tail(&self.logs.join("qemu.log"), 20)
                );
            }
            if line.starts_with("{\"error\"") {
                bail!("QEMU refused {command}: {line}");
            }
            if line.starts_with("{\"return\"") || line.starts_with("{\"QMP\"") {
                return Ok(line);
            }
        }
    }

    fn wait_restored(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.qmp(r#"{"execute":"query-status"}"#)?.contains("inmigrate") {
            if Instant::now() > deadline {
                bail!(
                    "restoring the snapshot took more than 60 s\n{}",
                    tail(&self.logs.join("qemu.log"), 20)
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Stops the machine and saves its state to a file.
    pub(super) fn save(&mut self, file: &Path) -> Result<()> {
        self.qmp(r#"{"execute":"stop"}"#)?;
        let unlimited = r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":0}}"#;
        self.qmp(unlimited)?;
        self.qmp(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"file:{}"}}}}"#,
            file.display()
        ))?;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let state = self.qmp(r#"{"execute":"query-migrate"}"#)?;
            if state.contains(r#""status": "completed""#) {
                return Ok(());
            }
            if state.contains("failed") || Instant::now() > deadline {
                bail!("saving the machine failed: {state}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the machine to power off; false if its console has no new output for `patience`.
    pub(super) fn wait_off(&mut self, patience: Duration) -> Result<bool> {
        let console = self.logs.join("console.log");
        let (mut bytes, mut since) = (0, Instant::now());
        while self.child.0.try_wait()?.is_none() {
            let now = fs::metadata(&console).map_or(0, |file| file.len());
            if now != bytes {
                (bytes, since) = (now, Instant::now());
            } else if since.elapsed() > patience {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    /// The image file of a data disk.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills QEMU and waits for its end.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.0.kill().context("killing the lab's QEMU")?;
        self.child.0.wait().context("waiting for the lab's QEMU")?;
        Ok(())
    }

    /// Process id of QEMU.
    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

fn arguments(
    lab: &Lab,
    start: Start,
    dir: &Path,
    logs: &Path,
    variant: Variant<'_>,
) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    let mut add = |words: &str| line.extend(words.split(' ').map(str::to_owned));
    add(MACHINE);
    add(if start == Start::Deterministic { DETERMINISTIC } else { NESTED });
    add(&format!("-serial file:{}", logs.join("console.log").display()));
    let drive = |name: &str, file: &str, more: &str| {
        format!(
            "-drive if=none,id={name},file={file},format=raw,discard=unmap,{more} -device virtio-blk-pci,drive={name},serial={name}",
        )
    };
    let file = |path: &Path| path.display().to_string();
    add(&drive("root", &file(&lab.image.join("root.img")), "cache=unsafe,readonly=on"));
    for (name, _) in DISKS {
        add(&match variant.scratch {
            Some((socket, export)) if name == "scratch" => drive(
                name,
                &format!("nbd:unix:{}:exportname={export}", file(socket)),
                "cache=writeback",
            ),
            _ => drive(name, &file(&dir.join(name)), "cache=unsafe"),
        });
    }
    add(&drive("debian", &file(&lab.debian.join("debian.img")), "cache=unsafe,snapshot=on"));
    add(&format!("-chardev socket,id=qmp,path={}", dir.join("qmp.sock").display()));
    add("-mon chardev=qmp,mode=control -device virtio-serial-pci");
    for name in ["cmd".to_owned()].into_iter().chain((0..GUEST_PORTS).map(|n| format!("guest{n}")))
    {
        let path = dir.join(format!("{name}.sock"));
        add(&format!(
            "-chardev socket,id={name},path={} -device virtserialport,chardev={name},name={name}",
            path.display()
        ));
    }
    add(&format!(
        "-kernel {} -initrd {}",
        lab.kit.join("vmlinuz").display(),
        lab.kit.join("host.cpio.zst").display()
    ));
    let unattended = if start == Start::Deterministic { " lab.unattended" } else { "" };
    let mut all = line;
    all.extend(["-append".to_owned(), format!("{APPEND}{unattended}")]);
    if start == Start::Restored {
        let state = variant.state.map_or_else(|| lab.snapshot.join("state"), Path::to_owned);
        all.extend(["-incoming".to_owned(), format!("file:{}", state.display())]);
    }
    all
}

fn accept(listener: &UnixListener, child: &mut Child, logs: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU exited at its start ({status}):\n{}", tail(&logs.join("qemu.log"), 20));
        }
        if Instant::now() > deadline {
            bail!("no connection from QEMU within 30 s");
        }
        thread::sleep(Duration::from_millis(2));
    }
}
