//! `bulkhead serve`: one disk for the guest of another monitor, until a signal comes.
//!
//! The control thread listens and watches; each frontend has a thread of its own, and each of its rings one more.

mod frontend;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use devices::virtio::vhost_user::VhostUserBlock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::cmd::explain;
use crate::config::disk_file::DiskFile;
use crate::config::human_size;
use crate::control::api::{Api, View};
use crate::control::signals::Signals;
use crate::disks::{DiskError, DiskRegistry, EventLog, ManagedDisk, open_virtio_blk};
use crate::exit::Exit;
use crate::log;
use crate::socket::{self, Socket};
use frontend::Frontend;

/// Why a disk is not served any more.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// There is no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host gives no event or thread.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
    /// Data may be lost.
    #[error("the disk could not be closed; data written to it may be lost")]
    Close(#[source] io::Error),
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host(what, source)
}

/// Serves the disk at `path` until a signal comes.
///
/// # Errors
///
/// When the host fails, before the first frontend or later.
pub(crate) fn serve(config: &DiskFile, path: &Path) -> Result<ExitCode, Error> {
    let signals = Signals::block().map_err(Error::Signals)?;
    let socket = Socket::claim("vhost-user socket", path)?;
    let control = config.control.as_deref();
    let control = control.map(|path| Socket::claim("control socket", path)).transpose()?;
    let block = open_virtio_blk(&config.disk)?;
    let controls = block.control();
    let bytes = controls.geometry().capacity;
    let disk = VhostUserBlock::new(block).map_err(host("make a vhost-user device"))?;
    let events: Arc<EventLog> = Arc::default();
    let managed = ManagedDisk::new(config.disk.clone(), controls).watched(&events);
    let managed = managed.map_err(host("watch the space of the disk's store"))?;
    let disks = Arc::new(DiskRegistry::new([managed]));
    let view = View { started: Instant::now(), machine: None, disks, events };
    let api = control.map(|socket| Api::start(socket, view)).transpose();
    let api = api.map_err(host("serve the control socket"))?;
    log::print(announcement(config, bytes, path));
    let disk = Arc::new(Mutex::new(disk));
    let ended = Server { signals: &signals, socket: &socket, disk: &disk, frontend: None }.run();
    drop(api);
    if ended? == End::AtOnce {
        return Ok(Exit::Stopped.into());
    }
    disk.lock().unwrap_or_else(PoisonError::into_inner).close().map_err(Error::Close)?;
    Ok(ExitCode::SUCCESS)
}

fn announcement(config: &DiskFile, bytes: u64, socket: &Path) -> String {
    let disk = &config.disk;
    let access = if disk.options.read_only { "read-only" } else { "read-write" };
    let queues = if disk.queues == 1 { "queue" } else { "queues" };
    format!(
        "serving {}, {}, {access}, {} {queues}, at {}\n{}",
        disk.path.display(),
        human_size(bytes),
        disk.queues,
        socket.display(),
        explain::disk(disk)
    )
}

/// How serving ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing is in flight.
    Orderly,
    /// Somebody could not wait for that.
    AtOnce,
}

struct Server<'a> {
    signals: &'a Signals,
    socket: &'a Socket,
    disk: &'a Arc<Mutex<VhostUserBlock>>,
    frontend: Option<Frontend>,
}

/// What woke the loop.
struct Ready {
    signal: bool,
    newcomer: bool,
    gone: bool,
}

impl Server<'_> {
    fn run(mut self) -> Result<End, Error> {
        let mut ending = false;
        loop {
            let ready = self.wait(ending).map_err(host("wait for a frontend"))?;
            if ready.gone
                && let Some(frontend) = self.frontend.take()
            {
                log::print(frontend.left());
            }
            if ready.signal
                && let Some(signal) = self.signals.next().map_err(Error::Signals)?
            {
                tracing::info!(signal, "asked to end");
                if ending {
                    return Ok(End::AtOnce);
                }
                ending = true;
                if let Some(frontend) = &self.frontend {
                    frontend.part();
                }
            }
            if ending && self.frontend.is_none() {
                return Ok(End::Orderly);
            }
            if ready.newcomer && !ending && !self.is_between_frontends() {
                self.accept();
            }
        }
    }

    fn wait(&self, ending: bool) -> io::Result<Ready> {
        let listens = !ending && !self.is_between_frontends();
        let newcomers = if listens { PollFlags::IN } else { PollFlags::empty() };
        let mut watched = vec![
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(self.socket.listener(), newcomers),
        ];
        if let Some(frontend) = &self.frontend {
            watched.push(PollFd::new(frontend, PollFlags::IN));
            watched.extend(frontend.hang_up());
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| watched.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { signal: ready(0), newcomer: ready(1), gone: ready(2) })
    }

    /// Whether one is leaving: who comes meanwhile waits for the disk.
    fn is_between_frontends(&self) -> bool {
        self.frontend.as_ref().is_some_and(Frontend::is_leaving)
    }

    /// Takes the next frontend, if there is none yet.
    fn accept(&mut self) {
        let stream = match self.socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) => return tracing::warn!(%error, "a frontend could not connect"),
        };
        if self.frontend.is_some() {
            return log::print("a second frontend was turned away: the disk has one already");
        }
        match Frontend::start(stream, Arc::clone(self.disk)) {
            Ok(frontend) => {
                log::print("a frontend has connected");
                self.frontend = Some(frontend);
            }
            Err(error) => tracing::warn!(%error, "a frontend could not be served"),
        }
    }
}
