//! Accepts frontends, one at a time, and ends on a signal. Control thread.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex};

use devices::virtio::vhost_user::VhostUserBlock;
use event_manager::EventSet;

use super::frontend::Frontend;
use crate::control::{EventSource, Interest, ListeningSocket, Signals};
use crate::log;

/// How the service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServeEnd {
    /// No request is in flight.
    Drained,
    /// A second signal arrived while requests were in flight.
    Forced,
}

const SIGNAL: u32 = 1;
const LISTENER: u32 = 2;
/// A frontend closed its connection. Its requests may still be in flight.
const CLOSED: u32 = 3;
/// The thread of a frontend has ended.
const DISCONNECTED: u32 = 4;

/// The state of the service.
pub(super) struct Server<'s> {
    signals: &'s Signals,
    socket: &'s ListeningSocket,
    disk: &'s Arc<Mutex<VhostUserBlock>>,
    frontend: Option<Frontend>,
    /// The listener is registered. A frontend that connects while another one disconnects waits.
    is_listening: bool,
    is_ending: bool,
    end: &'s Cell<Option<ServeEnd>>,
}

impl<'s> Server<'s> {
    /// Serves `disk` at `socket`. The loop must stop when `end` is set.
    pub(super) fn new(
        signals: &'s Signals,
        socket: &'s ListeningSocket,
        disk: &'s Arc<Mutex<VhostUserBlock>>,
        end: &'s Cell<Option<ServeEnd>>,
    ) -> Self {
        let (frontend, is_listening, is_ending) = (None, false, false);
        Self { signals, socket, disk, frontend, is_listening, is_ending, end }
    }

    fn listen(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        if self.is_ending || self.is_listening {
            return Ok(());
        }
        self.is_listening = true;
        interest.add(self.socket.listener(), LISTENER, EventSet::IN)
    }

    fn stop_listening(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        if !self.is_listening {
            return Ok(());
        }
        self.is_listening = false;
        interest.remove(self.socket.listener())
    }

    /// The first signal disconnects the frontend, the second one ends the service.
    fn handle_signal(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        let Some(signal) = self.signals.next()? else { return Ok(()) };
        tracing::info!(signal, "shutdown requested");
        if self.is_ending {
            self.end.set(Some(ServeEnd::Forced));
            return Ok(());
        }
        self.is_ending = true;
        match &self.frontend {
            Some(frontend) => frontend.disconnect(),
            None => self.end.set(Some(ServeEnd::Drained)),
        }
        self.stop_listening(interest)
    }

    fn accept(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        if self.frontend.as_ref().is_some_and(Frontend::is_disconnecting) {
            return self.stop_listening(interest);
        }
        let stream = match self.socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a frontend");
                return Ok(());
            }
        };
        if self.frontend.is_some() {
            log::print("a second frontend was refused: the disk already has one");
            return Ok(());
        }
        match Frontend::start(stream, Arc::clone(self.disk)) {
            Ok(frontend) => {
                log::print("a frontend has connected");
                interest.add(&frontend.connection(), CLOSED, EventSet::READ_HANG_UP)?;
                interest.add(frontend.disconnected(), DISCONNECTED, EventSet::IN)?;
                self.frontend = Some(frontend);
            }
            Err(error) => tracing::warn!(%error, "cannot serve a frontend"),
        }
        Ok(())
    }

    fn handle_disconnect(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        let Some(frontend) = self.frontend.take() else { return Ok(()) };
        // Not registered if it was closed before.
        let _ = interest.remove(&frontend.connection());
        interest.remove(frontend.disconnected())?;
        log::print(frontend.join());
        if self.is_ending {
            self.end.set(Some(ServeEnd::Drained));
        }
        self.listen(interest)
    }
}

impl EventSource for Server<'_> {
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        interest.add(self.signals, SIGNAL, EventSet::IN)?;
        self.listen(interest)
    }

    fn handle(&mut self, token: u32, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        match token {
            SIGNAL => self.handle_signal(interest),
            LISTENER => self.accept(interest),
            CLOSED => {
                if let Some(frontend) = &self.frontend {
                    interest.remove(&frontend.connection())?;
                }
                self.stop_listening(interest)
            }
            _ => self.handle_disconnect(interest),
        }
    }
}
