//! A vhost-user frontend and the thread that serves it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use devices::virtio::vhost_user::{Connection, Disconnect, VhostUserBlock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::notifier::Notifier;

/// A connected frontend.
pub(super) struct Frontend {
    stream: UnixStream,
    thread: JoinHandle<Disconnect>,
    /// Notifies when the thread ends.
    disconnected: Notifier,
}

impl Frontend {
    /// Serves `disk` to the frontend at the other end of `stream`.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors or threads.
    pub(super) fn start(stream: UnixStream, disk: Arc<Mutex<VhostUserBlock>>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let disconnected = Notifier::new()?;
        let connection = Connection::new(stream.try_clone()?, disk)?;
        let at_end = disconnected.clone();
        let thread = thread::Builder::new().name("vhost-user".into()).spawn(move || {
            let left = connection.serve();
            if let Err(error) = at_end.notify() {
                tracing::error!(%error, "cannot notify the control thread of a disconnect");
            }
            left
        })?;
        Ok(Self { stream, thread, disconnected })
    }

    /// Closes the connection. The thread completes the requests in flight before it ends.
    pub(super) fn disconnect(&self) {
        // Fails if the frontend has closed the connection.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether either side has closed the connection.
    pub(super) fn is_disconnecting(&self) -> bool {
        let mut watched = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let [stream] = match poll(&mut watched, Some(&now)) {
            Ok(_) => watched,
            Err(_) => return false,
        };
        stream.revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
    }

    /// The connection, which becomes ready when the frontend closes it.
    pub(super) fn connection(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Readable once the thread has ended.
    pub(super) fn disconnected(&self) -> &Notifier {
        &self.disconnected
    }

    /// Waits for the thread, and returns a message with the reason of the disconnect.
    pub(super) fn join(self) -> String {
        match self.thread.join() {
            Ok(Disconnect::Closed) => "the frontend closed the connection".to_owned(),
            Ok(Disconnect::Failed(error)) => format!("the frontend was disconnected: {error}"),
            Err(_) => "the frontend's thread panicked".to_owned(),
        }
    }
}
