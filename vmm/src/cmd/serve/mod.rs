//! `bulkhead serve`: a disk for the guest of another monitor, until a signal arrives.
//!
//! The control thread listens for frontends. Each frontend has its own thread, and each of its
//! rings a further one.

mod frontend;
mod server;

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use devices::virtio::vhost_user::VhostUserBlock;
use thiserror::Error;

use super::explain;
use crate::config::disk_file::DiskFile;
use crate::config::human_size;
use crate::control::api::{Api, View};
use crate::control::{
    EndReporter, EventLoop, ListeningSocket, REPORT_INTERVAL, SignalHandler, Signals, SocketError,
    close,
};
use crate::disks::{
    Commits, DiskError, DiskRegistry, EventLog, ManagedDisk, StallWatch, open_virtio_blk,
};
use crate::exit::Exit;
use crate::log;
use server::{ServeEnd, Server};

/// The reason a disk is not served, or no longer.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host is out of descriptors or threads.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
    /// The last flush failed.
    #[error("cannot close the disk; data written to it may be lost")]
    Close(#[source] io::Error),
}

fn cannot(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Host(action, source)
}

/// Serves the disk at the socket `path` until a signal arrives.
///
/// # Errors
///
/// The host failed.
pub(crate) fn serve(config: &DiskFile, path: &Path) -> Result<ExitCode, ServeError> {
    let signals = Arc::new(Signals::block().map_err(cannot("receive signals"))?);
    log::start_queue().map_err(cannot("start the log"))?;
    let socket = ListeningSocket::bind("vhost-user socket", path)?;
    let control = config.control.as_deref();
    let control = control.map(|path| ListeningSocket::bind("control socket", path)).transpose()?;
    let block = open_virtio_blk(&config.disk)?;
    let controls = block.control();
    let bytes = controls.geometry().capacity;
    let disk = VhostUserBlock::new(block).map_err(cannot("create a vhost-user device"))?;
    let events: Arc<EventLog> = Arc::default();
    let managed = ManagedDisk::new(config.disk.clone(), controls).watched(&events);
    let managed = managed.map_err(cannot("watch the disk's soft limit"))?;
    let disks = Arc::new(DiskRegistry::new([managed]));
    let stalls = StallWatch::start(Arc::clone(&disks), Arc::clone(&events));
    let _stalls = stalls.map_err(cannot("watch the disk"))?;
    let all = Arc::clone(&disks);
    let commits = Commits::default();
    let view = View { started: Instant::now(), machine: None, disks: all, events, commits };
    let api = control.map(|socket| Api::start(socket, view)).transpose();
    let api = api.map_err(cannot("serve the control socket"))?;
    log::print(announcement(config, bytes, path));
    let disk = Arc::new(Mutex::new(disk));
    let end = run(&signals, &socket, &disk, &disks).map_err(cannot("wait for a frontend"));
    // With requests in flight, the frontend's thread keeps the device.
    let is_forced = matches!(end, Ok(ServeEnd::Forced));
    let closed = close(&signals, &disks, || match is_forced {
        true => Ok(()),
        false => disk.lock().unwrap_or_else(PoisonError::into_inner).close(),
    });
    drop(api);
    closed.map_err(ServeError::Close)?;
    Ok(if end? == ServeEnd::Forced { Exit::Stopped.into() } else { ExitCode::SUCCESS })
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

fn run(
    signals: &Signals,
    socket: &ListeningSocket,
    disk: &Arc<Mutex<VhostUserBlock>>,
    disks: &DiskRegistry,
) -> io::Result<ServeEnd> {
    let end = Cell::new(None);
    let mut events = EventLoop::new()?;
    events.add(Server::new(signals, socket, disk, &end))?;
    // After the first signal requests may be in flight.
    let mut waiting: Option<(EndReporter, Instant)> = None;
    loop {
        if let Some(end) = end.get() {
            return Ok(end);
        }
        events.wait(waiting.as_ref().map(|(_, due)| *due))?;
        let now = Instant::now();
        match &mut waiting {
            Some((reporter, due)) if *due <= now => {
                reporter.report();
                *due = now + REPORT_INTERVAL;
            }
            None if signals.taken() > 0 => {
                let reporter = EndReporter::new(disks, signals.taken());
                waiting = Some((reporter, now + REPORT_INTERVAL));
            }
            _ => {}
        }
    }
}
