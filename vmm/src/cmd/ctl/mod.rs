//! `bulkhead ctl`: asks a running machine, and shows what it says.

mod client;
pub(crate) mod render;

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::config::{self, attached};
use crate::control::api::model::{Disk, Event, Events, Outcome, Resize, State, Status};
use crate::exit::Exit;

/// How long to wait for the end of a disk that is detached, and how long between two looks.
const DETACH_PATIENCE: Duration = Duration::from_secs(60);
const DETACH_PERIOD: Duration = Duration::from_millis(20);
/// The event of a disk that is detached; one that lost data has more to its name.
const DETACHED: &str = "disk_detached";

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Ask {
    /// Show the machine and its disks
    Status,
    /// Show the disks
    Disks,
    /// Show what the disks have done, and how long it took
    Stats {
        /// Only this disk
        id: Option<String>,
    },
    /// Show what happened: soft limits reached, disks attached and detached
    Events,
    /// Stop the guest's processors where they are
    Pause,
    /// Let the guest go on
    Resume,
    /// Grow a disk, or look at its file or device again, and tell the guest
    Resize {
        /// The disk
        id: String,
        /// Its new size, such as 20GiB; left out, the size its file or device has become
        #[arg(value_parser = config::parse_size)]
        size: Option<u64>,
    },
    /// Attach a disk to a SCSI controller of the running machine
    #[command(after_help = ATTACH_HELP)]
    Attach {
        /// A TOML file with one `[[disk]]`, as the machine's configuration would have it
        #[arg(value_name = "FILE")]
        disk: PathBuf,
    },
    /// Detach a SCSI disk that the guest has unmounted, and wait until its image is flushed and closed
    Detach {
        /// The disk
        id: String,
    },
    /// Press the power button
    PowerButton,
    /// Print all figures for Prometheus
    Metrics,
}

const ATTACH_HELP: &str = "\
The file needs no more than this:
  [[disk]]
  id = \"data\"
  path = \"data.img\"
  bus = \"virtio-scsi\"

The disk is gone when the machine is started again: to keep it, add it to the
machine's configuration as well.";

/// Why `ctl` failed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The configuration names no socket.
    #[error(
        "{0} has no control socket; add `[control]` and below it `socket = \"control.sock\"`, then start the machine again"
    )]
    NoControl(PathBuf),
    /// There is no answer.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The configuration of a disk is wrong, which was shown.
    #[error("the disk was not attached")]
    BadDisk,
    /// The image of a disk is not closed yet.
    #[error(
        "disk {id} is still being detached after {} s: the host works on what was in flight, or on the flush; `bulkhead ctl` shows it in `status`, and its end in `events`",
        after.as_secs()
    )]
    StillDetaching {
        /// The disk.
        id: String,
        /// How long was waited.
        after: Duration,
    },
    /// Data may be lost.
    #[error("disk {0} is detached: {1}")]
    DetachedWithLoss(String, String),
    /// The answer cannot be read.
    #[error("the machine's answer cannot be read; is it of another version?")]
    Answer(#[source] serde_json::Error),
    /// Standard output cannot be written.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

/// Asks the machine whose socket or configuration is `target`, prints the answer, and returns the exit
/// code.
///
/// # Errors
///
/// When there is no answer to print.
pub(crate) fn ctl(target: &Path, ask: &Ask, json: bool) -> Result<ExitCode, Error> {
    let socket = match socket_of(target) {
        Ok(Some(socket)) => socket,
        Ok(None) => return Err(Error::NoControl(target.into())),
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let text = match (Machine { socket: &socket, json }).answer(ask) {
        Err(Error::BadDisk) => return Ok(Exit::BadConfig.into()),
        text => text?,
    };
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::Output(error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// A regular file is a configuration; everything else is, or was, a socket.
fn socket_of(target: &Path) -> Result<Option<PathBuf>, config::Report> {
    let kind = target.metadata().map(|metadata| metadata.file_type());
    let is_config = match kind {
        Ok(kind) => !kind.is_socket(),
        Err(_) => target.extension().is_some_and(|extension| extension == "toml"),
    };
    if is_config { config::control_socket(target) } else { Ok(Some(target.into())) }
}

struct Machine<'s> {
    socket: &'s Path,
    json: bool,
}

impl Machine<'_> {
    fn answer(&self, ask: &Ask) -> Result<String, Error> {
        match ask {
            Ask::Status => self.get("/v1/status", render::status),
            Ask::Disks if self.json => self.disks_json(),
            Ask::Disks => self.get("/v1/status", |status: &Status| render::disks(&status.disks)),
            Ask::Stats { id: Some(id) } => self.get(&disk_path(id), render::stats),
            Ask::Stats { id: None } if self.json => self.disks_json(),
            Ask::Stats { id: None } => self.get("/v1/status", |status: &Status| {
                status.disks.iter().map(render::stats).collect::<Vec<_>>().join("\n")
            }),
            Ask::Events => self.get("/v1/events", render::events),
            Ask::Pause => self.post("/v1/pause", "", state),
            Ask::Resume => self.post("/v1/resume", "", state),
            Ask::PowerButton => self.post("/v1/power-button", "", |outcome: &Outcome| {
                let paused = outcome.state == State::Paused;
                let when = if paused { "; the guest learns of it when it goes on" } else { "" };
                format!("pressed the power button{when}\n")
            }),
            Ask::Resize { id, size } => {
                let path = format!("{}/resize", disk_path(id));
                self.post(&path, &resize_body(*size), |disk: &Disk| {
                    format!("{} has {}\n", disk.id, config::human_size(disk.size_bytes))
                })
            }
            Ask::Attach { disk } => self.attach(disk),
            Ask::Detach { id } => self.detach(id),
            Ask::Metrics => Ok(client::ask(self.socket, "GET", "/metrics", "")?),
        }
    }

    fn attach(&self, disk: &Path) -> Result<String, Error> {
        let (request, report) = attached::load(disk).map_err(|report| {
            report.print();
            Error::BadDisk
        })?;
        report.print();
        let (path, body) = (disk_path(&request.id), request.keys.to_string());
        let answer = client::ask(self.socket, "PUT", &path, &body)?;
        self.show(answer, |disk: &Disk| {
            let place = disk.scsi.as_ref().map_or(String::new(), |scsi| {
                format!(
                    " as LUN {} of target {} of controller {}",
                    scsi.lun, scsi.target, scsi.controller
                )
            });
            format!("{} is attached{place}\n", disk.id)
        })
    }

    /// Detaches a disk, and waits for the event that says that its image is closed.
    fn detach(&self, id: &str) -> Result<String, Error> {
        let last = self.events()?.last().map_or(0, |event| event.number);
        client::ask(self.socket, "DELETE", &disk_path(id), "")?;
        let start = Instant::now();
        while start.elapsed() < DETACH_PATIENCE {
            let of_disk = |event: &Event| {
                event.number > last && event.disk == id && event.event.starts_with(DETACHED)
            };
            if let Some(event) = self.events()?.into_iter().find(of_disk) {
                return self.detached(event);
            }
            thread::sleep(DETACH_PERIOD);
        }
        Err(Error::StillDetaching { id: id.to_owned(), after: DETACH_PATIENCE })
    }

    fn detached(&self, event: Event) -> Result<String, Error> {
        if event.event != DETACHED {
            return Err(Error::DetachedWithLoss(event.disk, event.text));
        }
        if self.json {
            return serde_json::to_string(&event).map(|json| json + "\n").map_err(Error::Answer);
        }
        Ok(format!("{} is detached: {}\n", event.disk, event.text))
    }

    fn events(&self) -> Result<Vec<Event>, Error> {
        let answer = client::ask(self.socket, "GET", "/v1/events", "")?;
        let Events { events } = serde_json::from_str(&answer).map_err(Error::Answer)?;
        Ok(events)
    }

    fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, Error> {
        self.show(client::ask(self.socket, "GET", path, "")?, render)
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, Error> {
        self.show(client::ask(self.socket, "POST", path, body)?, render)
    }

    fn show<T: DeserializeOwned>(
        &self,
        answer: String,
        render: impl FnOnce(&T) -> String,
    ) -> Result<String, Error> {
        if self.json {
            return Ok(answer);
        }
        Ok(render(&serde_json::from_str(&answer).map_err(Error::Answer)?))
    }

    /// The part of the status that is about disks, as it came.
    fn disks_json(&self) -> Result<String, Error> {
        let answer = client::ask(self.socket, "GET", "/v1/status", "")?;
        let status: serde_json::Value = serde_json::from_str(&answer).map_err(Error::Answer)?;
        let disks = status.get("disks").map(ToString::to_string);
        Ok(disks.unwrap_or_default() + "\n")
    }
}

fn state(outcome: &Outcome) -> String {
    match outcome.state {
        State::Running => "running\n".to_owned(),
        State::Paused => "paused\n".to_owned(),
    }
}

/// Whatever is no id is no path of the interface, and is told so by the machine.
fn disk_path(id: &str) -> String {
    format!("/v1/disks/{id}")
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
    fn a_loss_is_no_success() {
        let machine = Machine { socket: Path::new("control.sock"), json: false };
        let event = |event: &str| Event {
            number: 1,
            time_ms: 0,
            event: event.into(),
            disk: "data".into(),
            text: "it is so".into(),
        };
        assert_eq!(
            machine.detached(event("disk_detached")).unwrap(),
            "data is detached: it is so\n"
        );
        let lost = machine.detached(event("disk_detached_with_loss")).unwrap_err();
        assert_eq!(lost.to_string(), "disk data is detached: it is so");
    }
}
