//! `crash test`: runs a machine whose disk is recorded, then explores the recording.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::iter;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use crash::LogEnd;
use rustix::process::{Pid, Signal, kill_process};

use super::answer::{AnswerOutput, SearchAnswer};
use super::child::KilledOnDrop;
use super::explore::Exploration;
use super::guest::require_checker_guest;
use super::interrupt::{hear_signals, is_interrupted};
use super::options::SearchArguments;
use super::recording::{RecordingArguments, require_temporary_folder, shown};
use crate::config::{ConsoleConfig, DiskConfig, MachineConfig, control_socket_in, machine_file};
use crate::exit::Exit;
use crate::log::{self, StatusLine};
use crate::sanitize::sanitize;
use crate::unix_socket;

/// Examples of the command.
pub(super) const TEST_HELP: &str = "\
The images of the machine stay as they are: it runs from layers over them. The
layers, the log and the console are in a new folder, by default VM.crash.

`--run` is a command of this host that makes the guest work, for example by
ssh. It finds the control socket in $BULKHEAD_CONTROL, and the console's, if
the machine has one, in $BULKHEAD_CONSOLE. When it ends, the machine is stopped
at once. Without it the guest has to work by itself, and to
power off.

Before the search the same states are explored as if the disk ignored flushes.
A check that accepts those proves nothing, which is an error.

Examples:
  bulkhead crash test vm.toml --check check-ext4
  bulkhead crash test vm.toml --run ./load.sh \\
    --check 'check-ext4 && check-files' --time 10m --junit crash.xml

Exit codes are those of `bulkhead crash explore`.";

/// Time for the control socket of the machine.
const START_LIMIT: Duration = Duration::from_secs(60);
const PERIOD: Duration = Duration::from_millis(50);
/// A run that ends earlier shows no progress.
const DELAY: Duration = Duration::from_secs(2);

/// A test of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct TestArguments {
    /// The configuration of the machine, a TOML file
    config: PathBuf,
    /// The disk [default: the only one that is written]
    #[arg(long, value_name = "ID")]
    disk: Option<String>,
    /// The workload, a command for /bin/sh on this host [default: the guest works by itself]
    #[arg(long, value_name = "CMD")]
    run: Option<OsString>,
    /// The folder that is made for layers, log and console [default: VM.crash]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// The search
    #[command(flatten)]
    search: SearchArguments,
}

/// Runs the machine, explores its recording, and prints what was found.
pub(super) fn test(arguments: &TestArguments, json: bool) -> anyhow::Result<ExitCode> {
    let config = match machine_file::load(&arguments.config) {
        Ok(config) => config,
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let folder = arguments.dir.clone().unwrap_or_else(|| arguments.config.with_extension("crash"));
    let checker = arguments.search.check_guest.as_deref().map_or(Ok(()), require_checker_guest);
    let disk = match checker.map_err(Into::into).and_then(|()| disk(&config, arguments)) {
        Ok(disk) => disk,
        Err(error) => {
            log::print(format_args!("error: {}", sanitize(&format!("{error:#}"))));
            return Ok(Exit::BadConfig.into());
        }
    };
    let log = folder.join(format!("{}.log", disk.id()));
    let files = RecordingArguments { log, base: disk.path.clone(), force_base: false };
    let kept: Vec<_> = iter::once(arguments.config.as_path())
        .chain(config.disks.iter().map(|disk| disk.path.as_path()))
        .chain(config.disks.iter().filter_map(|disk| disk.base.as_deref()))
        .collect();
    hear_signals().context("cannot receive signals")?;
    let output = AnswerOutput::open(&files, &kept, arguments.search.junit.as_deref(), json)?;
    output.give(record_and_explore(arguments, &config, &folder, &files, json))
}

fn record_and_explore(
    arguments: &TestArguments,
    config: &MachineConfig,
    folder: &Path,
    files: &RecordingArguments,
    json: bool,
) -> anyhow::Result<SearchAnswer> {
    require_temporary_folder()?;
    fs::create_dir(folder).with_context(|| {
        format!("cannot make {}; remove it, or name another with --dir", shown(folder))
    })?;
    let run = MachineRun::start(&arguments.config, folder)?;
    if !record(run, config, arguments.run.as_deref(), folder)? {
        return Ok(SearchAnswer::Interrupted);
    }
    // The machine ran on a layer over the base.
    let recording = files.read()?;
    ensure!(
        matches!(recording.end(), LogEnd::Closed(_)),
        "the recording is not whole: {:?}; see {}",
        recording.end(),
        shown(&folder.join("messages"))
    );
    Exploration { recording: &recording, files, arguments: &arguments.search, json }.run(true)
}

/// The disk to test.
fn disk<'c>(
    config: &'c MachineConfig,
    arguments: &TestArguments,
) -> anyhow::Result<&'c DiskConfig> {
    let id = arguments.disk.as_deref();
    let written: Vec<_> = config.disks.iter().filter(|disk| !disk.options.read_only).collect();
    let names = written.iter().map(|disk| disk.id()).collect::<Vec<_>>().join(", ");
    let disk = match (id, written.as_slice()) {
        (Some(id), _) => written.into_iter().find(|disk| disk.id() == id),
        (None, [disk]) => Some(*disk),
        (None, _) => None,
    };
    let disk = disk.with_context(|| format!("name one disk with --disk: {names}"))?;
    ensure!(
        disk.base.is_none(),
        "disk {} is a layer; test its machine with an image that `bulkhead layer flatten` makes",
        disk.id()
    );
    Ok(disk)
}

/// Lets the machine work until its log is closed. Returns whether that was not interrupted.
fn record(
    mut run: MachineRun,
    config: &MachineConfig,
    workload: Option<&OsStr>,
    folder: &Path,
) -> anyhow::Result<bool> {
    let Some(workload) = workload else {
        let Some(status) = run.wait("the guest works")? else { return Ok(false) };
        ensure!(status.success(), "the guest did not power off: {}", run.explain(status));
        return Ok(true);
    };
    let control = config.control.clone().or_else(|| control_socket_in(folder));
    let control = control.context(
        "the path of the folder is too long for a control socket; name a shorter one with --dir",
    )?;
    if !run.wait_listening(&control)? {
        return Ok(false);
    }
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(workload).stdin(Stdio::null()).stdout(std::io::stderr());
    command.env("BULKHEAD_CONTROL", &control);
    if let ConsoleConfig::Socket(console) = &config.console {
        command.env("BULKHEAD_CONSOLE", console);
    }
    let workload = command.process_group(0).spawn().context("cannot start the workload")?;
    let mut workload = KilledOnDrop(workload);
    let Some(status) = wait(&mut workload.0, "the workload runs")? else { return Ok(false) };
    ensure!(status.success(), "the workload failed: {status}");
    if let Some(status) = run.child.0.try_wait()? {
        bail!("the machine ended before its workload: {}", run.explain(status));
    }
    run.stop()
}

/// A machine that is recorded.
struct MachineRun {
    child: KilledOnDrop,
    /// Its messages.
    messages: PathBuf,
}

impl MachineRun {
    fn start(config: &Path, folder: &Path) -> anyhow::Result<Self> {
        let messages = folder.join("messages");
        let file = |path: &Path| {
            File::create(path).with_context(|| format!("cannot make {}", shown(path)))
        };
        let (console, messages_file) = (file(&folder.join("console"))?, file(&messages)?);
        let program = std::env::current_exe().context("cannot find this program")?;
        let child = Command::new(program)
            .arg("run")
            .arg(config)
            .arg("--record")
            .arg(folder)
            .args(["--end-with", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(messages_file)
            .process_group(0)
            .spawn()
            .context("cannot start the machine")?;
        Ok(Self { child: KilledOnDrop(child), messages })
    }

    /// Waits for its end; `None` if it was interrupted.
    fn wait(&mut self, what: &str) -> anyhow::Result<Option<ExitStatus>> {
        wait(&mut self.child.0, what)
    }

    /// Waits until its control socket has a listener; false if it was interrupted.
    fn wait_listening(&mut self, control: &Path) -> anyhow::Result<bool> {
        let start = Instant::now();
        while unix_socket::is_listened_on(control).is_err() {
            if is_interrupted() {
                return Ok(false);
            }
            if let Some(status) = self.child.0.try_wait()? {
                bail!("the machine did not start: {}", self.explain(status));
            }
            ensure!(start.elapsed() < START_LIMIT, "the machine does not answer");
            thread::sleep(PERIOD);
        }
        Ok(true)
    }

    /// Stops it at once, so that its log is closed; false if it was interrupted.
    fn stop(&mut self) -> anyhow::Result<bool> {
        let start = Instant::now();
        loop {
            // The first signal presses the power button, the next one stops the machine. Those that
            // are pending together count as one.
            let pid = Pid::from_child(&self.child.0);
            kill_process(pid, Signal::TERM).context("cannot stop the machine")?;
            thread::sleep(PERIOD);
            if let Some(status) = self.child.0.try_wait().context("cannot wait for the machine")? {
                let codes = [Exit::Stopped, Exit::PoweredOff].map(|exit| exit as i32);
                let is_stopped = status.code().is_some_and(|code| codes.contains(&code));
                ensure!(is_stopped, "the machine failed: {}", self.explain(status));
                return Ok(true);
            }
            if is_interrupted() {
                return Ok(false);
            }
            ensure!(start.elapsed() < START_LIMIT, "the machine does not end: does its host hang?");
        }
    }

    /// How it ended, with its last message.
    fn explain(&self, status: ExitStatus) -> String {
        let messages = fs::read_to_string(&self.messages).unwrap_or_default();
        let last = messages.trim_end().lines().next_back().unwrap_or("it said nothing");
        format!("{status}; {last}; see {}", shown(&self.messages))
    }
}

/// Waits for the end of a process, and shows that; `None` if it was interrupted.
fn wait(child: &mut Child, what: &str) -> anyhow::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut line = StatusLine::default();
    let mut next = DELAY;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a process")? {
            return Ok(Some(status));
        }
        if is_interrupted() {
            log::print("interrupted; the machine is stopped");
            return Ok(None);
        }
        if start.elapsed() > next {
            next = Duration::from_secs(start.elapsed().as_secs() + 1);
            line.show(format_args!("{what}, {} s", start.elapsed().as_secs()));
        }
        thread::sleep(PERIOD);
    }
}
