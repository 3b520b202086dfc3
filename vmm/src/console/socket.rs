//! A console on a Unix socket, for one client at a time. The next one waits until it has gone.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::Output;

/// The socket and who is connected to it.
pub(super) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
}

impl ConsoleSocket {
    /// Listens at `path`; takes the place of a socket that nobody listens to any more.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let abandoned = UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if abandoned {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self { path: path.to_owned(), listener, client: None })
    }

    /// The client, or without one the listener.
    pub(super) fn watched(&self, room: bool) -> Option<BorrowedFd<'_>> {
        match &self.client {
            Some(client) => room.then(|| client.as_fd()),
            None => Some(self.listener.as_fd()),
        }
    }

    /// Accepts a client or reads from it. Output goes to the client from then on, and to nobody
    /// when it has gone.
    pub(super) fn read(&mut self, buffer: &mut [u8], output: &Output) -> usize {
        let Some(client) = &mut self.client else {
            self.client = self
                .accept(output)
                .inspect_err(|error| {
                    tracing::warn!(%error, "console client not accepted");
                })
                .ok();
            return 0;
        };
        match client.read(buffer) {
            Ok(length) if length > 0 => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            _ => {
                tracing::info!("console client has gone");
                output.set_sink(None);
                self.client = None;
                0
            }
        }
    }

    fn accept(&self, output: &Output) -> io::Result<UnixStream> {
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
            tracing::info!(%error, path = %self.path.display(), "console socket not removed");
        }
    }
}
