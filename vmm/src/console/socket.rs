//! A console on a Unix socket, with one client at a time. Further clients wait for their turn.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::ConsoleOutput;
use crate::unix_socket;

/// The socket and its client.
pub(super) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
}

impl ConsoleSocket {
    /// Listens at `path`. A socket file without a listener is replaced.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let is_abandoned = unix_socket::is_listened_on(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_abandoned {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self { path: path.to_owned(), listener, client: None })
    }

    /// The client, or the listener if there is none.
    pub(super) fn descriptor(&self, has_room: bool) -> Option<BorrowedFd<'_>> {
        match &self.client {
            Some(client) => has_room.then(|| client.as_fd()),
            None => Some(self.listener.as_fd()),
        }
    }

    /// Accepts a client or reads from it. Sends `output` to the client while it is connected.
    pub(super) fn read(&mut self, buffer: &mut [u8], output: &ConsoleOutput) -> usize {
        let Some(client) = &mut self.client else {
            self.client = self
                .accept(output)
                .inspect_err(|error| {
                    tracing::warn!(%error, "cannot accept a console client");
                })
                .ok();
            return 0;
        };
        match client.read(buffer) {
            Ok(length) if length > 0 => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            _ => {
                tracing::info!("console client disconnected");
                output.set_sink(None);
                self.client = None;
                0
            }
        }
    }

    fn accept(&self, output: &ConsoleOutput) -> io::Result<UnixStream> {
        let (client, _) = self.listener.accept()?;
        let sink = OwnedFd::from(client.try_clone()?);
        output.set_sink(Some(Arc::new(sink)));
        tracing::info!("console client connected");
        Ok(client)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::info!(%error, path = %self.path.display(), "cannot remove the console socket");
        }
    }
}
