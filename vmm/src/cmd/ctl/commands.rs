//! The commands of `bulkhead ctl`, each as requests to the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::client::{self, ClientError, disk_path};
use super::render;
use crate::config::{self, attached};
use crate::control::api::model::{
    Disk, Event, Events, FrozenDisk, Mark, MarkRequest, Outcome, Pause, Resize, RunState, Snapshot,
    SnapshotRequest, Status,
};
use crate::sanitize::sanitize;

/// Longest wait for the end of a detach, and the interval of its queries.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);
const DETACH_INTERVAL: Duration = Duration::from_millis(20);
/// The event of a detached disk. The event of one with lost data starts with this name.
const DETACHED: &str = "disk_detached";

/// A command to a running machine.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum CtlCommand {
    /// Show the machine and its disks
    Status,
    /// Show the disks
    Disks,
    /// Show request counts and latencies of the disks
    Stats {
        /// Only this disk
        id: Option<String>,
    },
    /// Show events: soft limits reached, disks attached and detached
    Events,
    /// Stop the guest's processors
    Pause {
        /// Wait until no request of a disk is in flight, at most ten seconds
        #[arg(long)]
        drain: bool,
    },
    /// Let the guest's processors run
    Resume,
    /// Grow a disk, or adopt the new size of its file or device, and notify the guest
    Resize {
        /// The disk
        id: String,
        /// The new size, such as 20GiB; by default the current size of the file or device
        #[arg(value_parser = config::parse_size)]
        size: Option<u64>,
    },
    /// Attach a disk to a SCSI controller of the running machine
    #[command(after_help = ATTACH_HELP)]
    Attach {
        /// A TOML file with one `[[disk]]`, as in a machine's configuration
        #[arg(value_name = "FILE")]
        disk: PathBuf,
    },
    /// Detach a SCSI disk that the guest has unmounted, and wait until it is flushed and closed
    Detach {
        /// The disk
        id: String,
    },
    /// Write a mark to the logs of recorded disks
    #[command(after_help = MARK_HELP)]
    Mark {
        /// The text, at most 416 bytes
        text: String,
        /// Only these disks; by default all that are recorded
        #[arg(value_name = "DISK")]
        disks: Vec<String>,
    },
    /// End the recording of a disk, and close its log
    StopRecord {
        /// The disk
        id: String,
    },
    /// Freeze the layers of the disks at one moment; each continues in a new layer
    #[command(after_help = SNAPSHOT_HELP)]
    Snapshot {
        /// A part of the names of the frozen layers
        name: String,
        /// Only these disks; by default all that are written and kept
        #[arg(value_name = "DISK")]
        disks: Vec<String>,
    },
    /// Merge the frozen layer below each disk into its base, and follow that
    #[command(after_help = COMMIT_HELP)]
    Commit {
        /// Only these disks; by default all below which a snapshot has frozen a layer
        #[arg(value_name = "DISK")]
        disks: Vec<String>,
        /// Also if other layers stand on the base, which cannot be used afterwards
        #[arg(long)]
        force: bool,
        /// Stop the commit that runs
        #[arg(long, conflicts_with_all = ["disks", "force"])]
        stop: bool,
    },
    /// Press the power button
    PowerButton,
    /// Print all metrics for Prometheus
    Metrics,
}

const ATTACH_HELP: &str = "\
The shortest file:
  [[disk]]
  id = \"data\"
  path = \"data.img\"
  bus = \"virtio-scsi\"

The disk is attached until the machine ends. To keep it, add it to the
machine's configuration as well.";

const MARK_HELP: &str = "\
The mark follows all requests that have completed, and comes before those that
are issued when this command has ended.

A guest makes marks itself when it writes a file that begins with the line
  bulkhead-mark: TEXT
and syncs it.";

const SNAPSHOT_HELP: &str = "\
Snapshot monday of a disk at vm1.layer freezes it as vm1.monday.layer. The
disk continues in a new vm1.layer over it. All disks have a snapshot, or none.

A copy of the machine as it was:
  bulkhead layer create --base vm1.monday.layer copy.layer";

const COMMIT_HELP: &str = "\
The layer directly below each disk is merged while the guest runs, at low
priority, and its file is removed. Run it again to merge the next one.

Ctrl-C stops it: the disks read as before, and the same command merges the
layer from the start. If the machine ends, the commit can be run again too.";

/// The reason `ctl` failed.
#[derive(Debug, Error)]
pub(crate) enum CtlError {
    /// The configuration has no control socket.
    #[error(
        "{0} has no control socket; add `[control]` and below it `socket = \"control.sock\"`, then \
         restart the machine"
    )]
    NoControlSocket(PathBuf),
    /// No answer, or a refusal.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration of a disk is wrong; its report is printed.
    #[error("the disk was not attached")]
    BadDisk,
    /// The image of a detached disk is not closed yet.
    #[error(
        "disk {id} is still being detached after {} s: the host has not completed its I/O in \
         flight or the flush; see `detaching` in `status`, and `events`",
        after.as_secs()
    )]
    StillDetaching {
        /// The disk.
        id: String,
        /// Time waited.
        after: Duration,
    },
    /// The last flush failed.
    #[error("disk {0} is detached: {1}")]
    DetachedWithLoss(String, String),
    /// The signals that stop a commit cannot be heard.
    #[error("cannot hear signals")]
    Signals(#[source] io::Error),
    /// Layers were not merged.
    #[error("{0}")]
    NotMerged(String),
    /// The answer is not valid.
    #[error("cannot parse the machine's answer; does it run another version?")]
    Answer(#[source] serde_json::Error),
    /// Standard output cannot be written.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

/// The machine behind a control socket.
pub(super) struct RemoteMachine<'s> {
    pub(super) socket: &'s Path,
    /// Whether to return JSON instead of text for people.
    pub(super) json: bool,
}

impl RemoteMachine<'_> {
    /// Executes a command, and returns the text to print.
    pub(super) fn execute(&self, command: &CtlCommand) -> Result<String, CtlError> {
        match command {
            CtlCommand::Status => self.get("/v1/status", render::status),
            CtlCommand::Disks | CtlCommand::Stats { id: None } if self.json => self.disks_json(),
            CtlCommand::Disks => {
                self.get("/v1/status", |status: &Status| render::disks(&status.disks))
            }
            CtlCommand::Stats { id: Some(id) } => self.get(&disk_path(id), render::stats),
            CtlCommand::Stats { id: None } => self.get("/v1/status", |status: &Status| {
                status.disks.iter().map(render::stats).collect::<Vec<_>>().join("\n")
            }),
            CtlCommand::Events => self.get("/v1/events", render::events),
            CtlCommand::Pause { drain } => self.post("/v1/pause", &pause_body(*drain), state_text),
            CtlCommand::Resume => self.post("/v1/resume", "", state_text),
            CtlCommand::PowerButton => self.post("/v1/power-button", "", power_button_text),
            CtlCommand::Resize { id, size } => {
                let path = format!("{}/resize", disk_path(id));
                self.post(&path, &resize_body(*size), |disk: &Disk| {
                    format!("{} has {}\n", disk.id, config::human_size(disk.size_bytes))
                })
            }
            CtlCommand::Snapshot { name, disks } => {
                self.post("/v1/snapshot", &snapshot_body(name, disks), snapshot_text)
            }
            CtlCommand::StopRecord { id } => self.stop_record(id),
            CtlCommand::Mark { text, disks } => {
                self.post("/v1/mark", &mark_body(text, disks), mark_text)
            }
            CtlCommand::Commit { stop: true, .. } => self.stop_commit(),
            CtlCommand::Commit { disks, force, .. } => self.commit(disks, *force),
            CtlCommand::Attach { disk } => self.attach(disk),
            CtlCommand::Detach { id } => self.detach(id),
            CtlCommand::Metrics => Ok(self.request("GET", "/metrics", "")?),
        }
    }

    fn attach(&self, disk: &Path) -> Result<String, CtlError> {
        let (request, report) = attached::load(disk).map_err(|report| {
            report.print();
            CtlError::BadDisk
        })?;
        report.print();
        let (path, body) = (disk_path(&request.id), request.keys.to_string());
        let answer = self.request("PUT", &path, &body)?;
        self.show(answer, |disk: &Disk| {
            let address = disk.scsi.as_ref().map_or(String::new(), |scsi| {
                format!(
                    " as LUN {} of target {} of controller {}",
                    scsi.lun, scsi.target, scsi.controller
                )
            });
            format!("{} is attached{address}\n", disk.id)
        })
    }

    fn stop_record(&self, id: &str) -> Result<String, CtlError> {
        let answer = self.request("DELETE", &format!("{}/record", disk_path(id)), "")?;
        self.show(answer, |disk: &Disk| {
            let log = disk.record.as_ref().map_or_else(String::new, |record| {
                format!("; {} has {}", sanitize(&record.path), config::human_size(record.bytes))
            });
            format!("{} is not recorded any more{log}\n", sanitize(&disk.id))
        })
    }

    /// Detaches a disk, and waits for the event of its closed image.
    fn detach(&self, id: &str) -> Result<String, CtlError> {
        let last = self.events()?.last().map_or(0, |event| event.number);
        self.request("DELETE", &disk_path(id), "")?;
        let start = Instant::now();
        while start.elapsed() < DETACH_TIMEOUT {
            let is_end = |event: &Event| {
                event.number > last && event.disk == id && event.event.starts_with(DETACHED)
            };
            if let Some(event) = self.events()?.into_iter().find(is_end) {
                return self.detached(event);
            }
            thread::sleep(DETACH_INTERVAL);
        }
        Err(CtlError::StillDetaching { id: id.to_owned(), after: DETACH_TIMEOUT })
    }

    fn detached(&self, event: Event) -> Result<String, CtlError> {
        if event.event != DETACHED {
            return Err(CtlError::DetachedWithLoss(event.disk, event.text));
        }
        if self.json {
            let json = serde_json::to_string(&event).map_err(CtlError::Answer)?;
            return Ok(json + "\n");
        }
        Ok(format!("{} is detached: {}\n", event.disk, event.text))
    }

    fn events(&self) -> Result<Vec<Event>, CtlError> {
        let answer = self.request("GET", "/v1/events", "")?;
        let Events { events } = serde_json::from_str(&answer).map_err(CtlError::Answer)?;
        Ok(events)
    }

    fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, CtlError> {
        self.show(self.request("GET", path, "")?, render)
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, CtlError> {
        self.show(self.request("POST", path, body)?, render)
    }

    pub(super) fn request(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<String, ClientError> {
        client::request(self.socket, method, path, body)
    }

    fn show<T: DeserializeOwned>(
        &self,
        answer: String,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, CtlError> {
        if self.json {
            return Ok(answer);
        }
        Ok(render(&serde_json::from_str(&answer).map_err(CtlError::Answer)?))
    }

    /// The disks of the status, as JSON.
    fn disks_json(&self) -> Result<String, CtlError> {
        let answer = self.request("GET", "/v1/status", "")?;
        let status: serde_json::Value = serde_json::from_str(&answer).map_err(CtlError::Answer)?;
        let disks = status.get("disks").map(ToString::to_string);
        Ok(disks.unwrap_or_default() + "\n")
    }
}

fn state_text(outcome: &Outcome) -> String {
    match (outcome.state, outcome.in_flight) {
        (RunState::Running, _) => "running\n".to_owned(),
        (RunState::Paused, 0) => "paused; no request is in flight\n".to_owned(),
        (RunState::Paused, 1) => "paused; 1 request is in flight\n".to_owned(),
        (RunState::Paused, count) => format!("paused; {count} requests are in flight\n"),
    }
}

fn power_button_text(outcome: &Outcome) -> String {
    match outcome.state {
        RunState::Running => "pressed the power button\n".to_owned(),
        RunState::Paused => {
            "pressed the power button; the guest sees it after a resume\n".to_owned()
        }
    }
}

fn mark_body(text: &str, disks: &[String]) -> String {
    let disks = (!disks.is_empty()).then(|| disks.to_vec());
    serde_json::to_string(&MarkRequest { text: text.to_owned(), disks }).unwrap_or_default()
}

fn mark_text(mark: &Mark) -> String {
    let disks: Vec<_> = mark.disks.iter().map(|disk| sanitize(disk)).collect();
    format!("marked {}\n", disks.join(", "))
}

fn snapshot_body(name: &str, disks: &[String]) -> String {
    let disks = (!disks.is_empty()).then(|| disks.to_vec());
    serde_json::to_string(&SnapshotRequest { name: name.to_owned(), disks }).unwrap_or_default()
}

fn snapshot_text(snapshot: &Snapshot) -> String {
    let Snapshot { name, disks, held_us, flush_us } = snapshot;
    let mut text = format!(
        "snapshot {name}: requests were held for {}, and for a flush of {}\n",
        milliseconds(*held_us),
        milliseconds(*flush_us)
    );
    let width = disks.iter().map(|disk| disk.id.chars().count()).max().unwrap_or(0);
    for FrozenDisk { id, path } in disks {
        text += &format!("  {:<width$}  {}\n", sanitize(id), sanitize(path));
    }
    text
}

/// Microseconds as milliseconds, rounded up.
pub(super) fn milliseconds(us: u64) -> String {
    let tenths = us.div_ceil(100);
    format!("{}.{} ms", tenths / 10, tenths % 10)
}

fn pause_body(drain: bool) -> String {
    if drain { serde_json::to_string(&Pause { drain }).unwrap_or_default() } else { String::new() }
}

fn resize_body(size_bytes: Option<u64>) -> String {
    match size_bytes {
        Some(_) => serde_json::to_string(&Resize { size_bytes }).unwrap_or_default(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_with_loss_is_an_error() {
        let machine = RemoteMachine { socket: Path::new("control.sock"), json: false };
        let event = |event: &str| Event {
            number: 1,
            time_ms: 0,
            event: event.into(),
            disk: "data".into(),
            text: "its image is closed".into(),
        };
        assert_eq!(
            machine.detached(event("disk_detached")).unwrap(),
            "data is detached: its image is closed\n"
        );
        let lost = machine.detached(event("disk_detached_with_loss")).unwrap_err();
        assert_eq!(lost.to_string(), "disk data is detached: its image is closed");
    }
}
