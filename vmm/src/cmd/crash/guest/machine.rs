//! The process of a checker guest.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use thiserror::Error;

use super::super::child::KilledOnDrop;
use super::agent::{Agent, NoAnswer};
use crate::cmd::ctl::client::{self, ClientError, disk_path};
use crate::config::{self, ConsoleConfig};
use crate::unix_socket;

/// For the guest's start, also in an emulated host.
const START_LIMIT: Duration = Duration::from_secs(120);
/// For the end of a detach.
const DETACH_LIMIT: Duration = Duration::from_secs(60);
/// Lines of the console that are shown if there is no agent.
const LINES: usize = 5;
const PERIOD: Duration = Duration::from_millis(2);

/// Why there is no checker guest.
#[derive(Debug, Error)]
pub(in super::super) enum GuestError {
    /// The states cannot be mounted.
    #[error("cannot mount the states, which takes /dev/fuse")]
    Mount(#[source] io::Error),
    /// The configuration is wrong, and was reported.
    #[error("the configuration of the checker guest is wrong: {0}")]
    Config(PathBuf),
    /// It lacks a key.
    #[error("{0} has no {1}; a checker guest needs it")]
    Missing(PathBuf, &'static str),
    /// Its program cannot be started.
    #[error("cannot start the checker guest")]
    Start(#[source] io::Error),
    /// It has ended, or does not answer.
    #[error(
        "the checker guest of {config} {why}; its agent is resources/checker/agent, which must run \
         on its serial console{last}"
    )]
    NoAgent {
        /// Its configuration.
        config: PathBuf,
        why: &'static str,
        /// The end of its console's output, as words.
        last: String,
    },
    /// A signal arrived.
    #[error("interrupted")]
    Stopped,
    /// The machine refuses.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// A disk stays in use.
    #[error("the machine has not detached {0} within {limit} s", limit = DETACH_LIMIT.as_secs())]
    Detach(String),
}

impl GuestError {
    /// Whether the command line names no configuration of a checker guest.
    pub(in super::super) fn is_wrong_config(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Missing(..))
    }
}

/// The sockets of a checker guest.
struct GuestSockets {
    control: PathBuf,
    console: PathBuf,
}

impl GuestSockets {
    /// Those in its configuration, which must have all that a checker guest needs.
    fn load(config: &Path) -> Result<Self, GuestError> {
        let machine = config::machine_file::load(config).map_err(|report| {
            report.print();
            GuestError::Config(config.to_owned())
        })?;
        let missing = |what| GuestError::Missing(config.to_owned(), what);
        let control = machine.control.ok_or_else(|| missing("`[control] socket`"))?;
        let ConsoleConfig::Socket(console) = machine.console else {
            return Err(missing("`[console] socket`"));
        };
        if machine.controllers.is_empty() {
            return Err(missing("SCSI controller (`[[scsi]]`)"));
        }
        Ok(Self { control, console })
    }
}

/// Checks the configuration of a checker guest, before it is needed.
///
/// # Errors
///
/// See [`GuestError::is_wrong_config`].
pub(in super::super) fn require_checker_guest(config: &Path) -> Result<(), GuestError> {
    GuestSockets::load(config).map(drop)
}

/// A running checker guest, which ends when this is dropped.
pub(super) struct CheckerMachine {
    _child: KilledOnDrop,
    control: PathBuf,
    pub(super) agent: Agent,
}

impl CheckerMachine {
    /// Runs the machine of `config`, until its agent is ready.
    ///
    /// # Errors
    ///
    /// See [`GuestError`].
    pub(super) fn start(config: &Path, is_stopped: &dyn Fn() -> bool) -> Result<Self, GuestError> {
        let GuestSockets { control, console } = GuestSockets::load(config)?;
        let program = std::env::current_exe().map_err(GuestError::Start)?;
        let child = Command::new(program)
            .arg("run")
            .arg(config)
            .args(["--end-with", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is for this command, which ends the machine.
            .process_group(0)
            .spawn()
            .map_err(GuestError::Start)?;
        let mut child = KilledOnDrop(child);
        let no_agent = |why, last| GuestError::NoAgent { config: config.to_owned(), why, last };
        let deadline = Instant::now() + START_LIMIT;
        let console = loop {
            if let Ok(stream) = unix_socket::connect(&console, PERIOD) {
                break stream;
            }
            if child.0.try_wait().map_err(GuestError::Start)?.is_some() {
                return Err(no_agent("ended at its start", String::new()));
            }
            if is_stopped() {
                return Err(GuestError::Stopped);
            }
            if Instant::now() > deadline {
                return Err(no_agent("has no console yet", String::new()));
            }
            thread::sleep(PERIOD);
        };
        let mut agent = Agent::new(console).map_err(GuestError::Start)?;
        agent.wait_ready(START_LIMIT, is_stopped).map_err(|reason| {
            let why = match reason {
                NoAnswer::Ended => "ended",
                NoAnswer::Late => "has no agent",
                NoAnswer::Stopped => return GuestError::Stopped,
            };
            let output = agent.last_output();
            let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines.iter().skip(lines.len().saturating_sub(LINES));
            no_agent(why, last.map(|line| format!("; {}", line.trim())).collect())
        })?;
        Ok(Self { _child: child, control, agent })
    }

    /// Attaches a file as a SCSI disk whose serial number is `id`.
    ///
    /// # Errors
    ///
    /// The machine refuses, or is gone.
    pub(super) fn attach(&self, id: &str, file: &Path) -> Result<(), GuestError> {
        let keys = json!({
            "path": file, "bus": "virtio-scsi", "serial": id, "format": "raw", "lock": "off",
        });
        client::request(&self.control, "PUT", &disk_path(id), &keys.to_string())?;
        Ok(())
    }

    /// Detaches it, and waits until its file is closed.
    ///
    /// # Errors
    ///
    /// The machine refuses, is gone, or keeps it.
    pub(super) fn detach(&self, id: &str) -> Result<(), GuestError> {
        client::request(&self.control, "DELETE", &disk_path(id), "")?;
        let deadline = Instant::now() + DETACH_LIMIT;
        while client::request(&self.control, "GET", &disk_path(id), "").is_ok() {
            if Instant::now() > deadline {
                return Err(GuestError::Detach(id.to_owned()));
            }
            thread::sleep(PERIOD);
        }
        Ok(())
    }
}
