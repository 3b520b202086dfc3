//! The control socket: HTTP/1.1 with JSON over a Unix socket, on the thread `control/api`.
//!
//! The thread reads the machine's state itself. It serves a few clients side by side and waits
//! neither for one of them nor for the host or the guest: [`jobs`] run the requests that may.

mod collect;
mod commit;
mod connection;
mod http;
mod jobs;
mod latency;
mod metrics;
pub(crate) mod model;
mod record;
mod routes;
mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use block::LogLimit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::socket::ListeningSocket;
use crate::notifier::Notifier;

pub(crate) use collect::{MachineView, View};
use connection::{Connection, KeepAlive, Reply};
pub(crate) use http::Problem;
use http::Request;
use jobs::Jobs;

/// Clients served at a time. Further clients wait, at most for the timeouts of these.
const CLIENTS_MAX: usize = 8;
/// Most of the stack is never touched.
const STACK_BYTES: usize = 1 << 20;
/// Delay after a failed accept, for example without descriptors.
const ACCEPT_DELAY: Duration = Duration::from_millis(50);

/// The running control socket. Dropping it ends the thread and removes the socket.
pub(crate) struct Api {
    thread: Option<JoinHandle<()>>,
    stop: Notifier,
    _socket: Arc<ListeningSocket>,
}

impl Api {
    /// Serves `view` at `socket`.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors or threads.
    pub(crate) fn start(socket: ListeningSocket, view: View) -> io::Result<Self> {
        let (stop, jobs) = (Notifier::new()?, Jobs::new()?);
        let (socket, view) = (Arc::new(socket), Arc::new(view));
        let server = ApiServer {
            socket: Arc::clone(&socket),
            stop: stop.clone(),
            view,
            jobs,
            clients: Vec::new(),
            accept_log: LogLimit::default(),
        };
        let thread = thread::Builder::new().name("control/api".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || server.run())?;
        Ok(Self { thread: Some(thread), stop, _socket: socket })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Err(error) = self.stop.notify() {
            tracing::error!(%error, "cannot stop the thread of the control socket");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the control socket panicked");
        }
    }
}

struct ApiServer {
    socket: Arc<ListeningSocket>,
    stop: Notifier,
    view: Arc<View>,
    jobs: Jobs,
    clients: Vec<Connection>,
    /// Without descriptors each attempt fails.
    accept_log: LogLimit,
}

/// The descriptors that are ready after a wait.
struct Ready {
    stop: bool,
    listener: bool,
    /// In the order of the clients.
    clients: Vec<bool>,
}

/// Answers a request, or starts a job that does.
fn serve(view: &Arc<View>, jobs: &Jobs, request: Request) -> Reply {
    if !request.may_wait() {
        return Reply::Now(routes::answer(view, &request));
    }
    let view = Arc::clone(view);
    match jobs.start(move || routes::answer(&view, &request)) {
        Ok(pending) => Reply::Later(pending),
        Err(problem) => Reply::Now(problem.into()),
    }
}

impl ApiServer {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(Ready { stop: true, .. }) => return,
                Ok(ready) => {
                    self.serve(&ready.clients);
                    if ready.listener {
                        self.accept();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the control socket failed and is closed");
                    return;
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let has_room = self.clients.len() < CLIENTS_MAX;
        let accepts = if has_room { PollFlags::IN } else { PollFlags::empty() };
        let mut watched = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(self.listener(), accepts),
            PollFd::new(self.jobs.ended(), PollFlags::IN),
        ];
        watched.extend(self.clients.iter().map(|client| match client.interest() {
            Some(events) => PollFd::new(client, events),
            // Not the client, whose hang-up would end every wait.
            None => PollFd::new(&self.stop, PollFlags::empty()),
        }));
        let deadline = self.clients.iter().filter_map(Connection::deadline).min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
        let (stop, listener) = (ready.next() == Some(true), ready.next() == Some(true));
        if ready.next() == Some(true) {
            self.jobs.ended().clear();
        }
        Ok(Ready { stop, listener, clients: ready.collect() })
    }

    /// Serves the clients that are ready, and closes finished and slow ones.
    fn serve(&mut self, ready: &[bool]) {
        let (view, jobs, now) = (&self.view, &self.jobs, Instant::now());
        let mut ready = ready.iter();
        self.clients.retain_mut(|client| {
            let is_ready = ready.next() == Some(&true);
            let mut keep = KeepAlive::Yes;
            if is_ready || client.has_response() {
                keep = client.advance(|request| serve(view, jobs, request));
            }
            let is_late = client.deadline().is_some_and(|deadline| deadline <= now);
            if keep == KeepAlive::Yes && is_late {
                keep = client.expire();
            }
            keep == KeepAlive::Yes
        });
    }

    fn accept(&mut self) {
        match self.listener().accept().and_then(|(stream, _)| Connection::new(stream)) {
            Ok(client) => self.clients.push(client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if let Some(suppressed) = self.accept_log.check() {
                    tracing::warn!(%error, suppressed, "cannot accept a client of the control socket");
                }
                thread::sleep(ACCEPT_DELAY);
            }
        }
    }

    fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }
}
