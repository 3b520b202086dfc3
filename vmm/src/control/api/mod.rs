//! The control socket: HTTP/1.1 with JSON over a Unix socket, on a thread of its own.
//!
//! The thread only looks and asks: what changes the machine is done by the control thread, on its
//! command. A few clients are served side by side, none of them waited for, so that a client that
//! hangs holds up nobody. Commands are carried out one after the other.

mod collect;
mod connection;
mod http;
mod latency;
mod metrics;
pub(crate) mod model;
mod routes;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::socket::Socket;

pub(crate) use collect::{MachineView, View};
use connection::{Connection, Next};
pub(crate) use http::Problem;

/// Clients served side by side; the next ones wait for the first to leave, which none can put off.
const CLIENTS_MAX: usize = 8;
/// Of these, most is never touched.
const STACK_BYTES: usize = 1 << 20;
/// How long to leave a host alone that cannot give a client its descriptor.
const RESPITE: Duration = Duration::from_millis(50);

/// The running control socket.
pub(crate) struct Api {
    thread: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
    _socket: Arc<Socket>,
}

impl Api {
    /// Serves `view` at `socket` from now on.
    ///
    /// # Errors
    ///
    /// When the host gives no event or thread.
    pub(crate) fn start(socket: Socket, view: View) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let socket = Arc::new(socket);
        let server = Server {
            socket: Arc::clone(&socket),
            stop: Arc::clone(&stop),
            view,
            clients: Vec::new(),
        };
        let thread = thread::Builder::new().name("control/api".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || server.run())?;
        Ok(Self { thread: Some(thread), stop, _socket: socket })
    }
}

impl Drop for Api {
    /// Ends the thread; the socket goes with it.
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "the control socket's thread cannot be stopped");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the control socket's thread panicked");
        }
    }
}

struct Server {
    socket: Arc<Socket>,
    stop: Arc<OwnedFd>,
    view: View,
    clients: Vec<Connection>,
}

/// What a wait found.
struct Ready {
    stop: bool,
    newcomer: bool,
    /// By client.
    clients: Vec<bool>,
}

impl Server {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(Ready { stop: true, .. }) => return,
                Ok(ready) => {
                    self.serve(&ready.clients);
                    if ready.newcomer {
                        self.accept();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the control socket is gone");
                    return;
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let has_room = self.clients.len() < CLIENTS_MAX;
        let newcomers = if has_room { PollFlags::IN } else { PollFlags::empty() };
        let mut watched =
            vec![PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(self.listener(), newcomers)];
        watched.extend(self.clients.iter().map(|client| PollFd::new(client, client.interest())));
        let deadline = self.clients.iter().map(Connection::deadline).min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
        let (stop, newcomer) = (ready.next() == Some(true), ready.next() == Some(true));
        Ok(Ready { stop, newcomer, clients: ready.collect() })
    }

    /// Goes on with those that are ready, and parts with those that are done or too slow.
    fn serve(&mut self, ready: &[bool]) {
        let (view, now) = (&self.view, Instant::now());
        let mut ready = ready.iter();
        self.clients.retain_mut(|client| {
            let is_ready = ready.next() == Some(&true);
            let mut next = Next::Stay;
            if is_ready {
                next = client.advance(|request| routes::answer(view, request));
            }
            if next == Next::Stay && client.deadline() <= now {
                next = client.expire();
            }
            next == Next::Stay
        });
    }

    fn accept(&mut self) {
        match self.listener().accept().and_then(|(stream, _)| Connection::new(stream)) {
            Ok(client) => self.clients.push(client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "client of the control socket not accepted");
                thread::sleep(RESPITE);
            }
        }
    }

    fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }
}
