//! A frontend and the thread that obeys it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use devices::virtio::vhost_user::{Connection, Disconnect, VhostUserBlock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// See the module's documentation.
pub(super) struct Frontend {
    stream: UnixStream,
    thread: JoinHandle<Disconnect>,
    /// Signalled when the thread ends.
    gone: Arc<OwnedFd>,
}

impl Frontend {
    /// Lets the frontend at the other end of `stream` use the disk.
    ///
    /// # Errors
    ///
    /// The host gives no descriptor, event or thread.
    pub(super) fn start(stream: UnixStream, disk: Arc<Mutex<VhostUserBlock>>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let gone = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let connection = Connection::new(stream.try_clone()?, disk)?;
        let at_end = Arc::clone(&gone);
        let thread = thread::Builder::new().name("vhost-user".into()).spawn(move || {
            let left = connection.serve();
            if let Err(error) = rustix::io::write(&at_end, &1_u64.to_ne_bytes()) {
                tracing::error!(%error, "nobody learns that the frontend left");
            }
            left
        })?;
        Ok(Self { stream, thread, gone })
    }

    /// Ends the connection. What is in flight is finished before the thread ends.
    pub(super) fn part(&self) {
        // Fails if the frontend has left.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether it has closed the connection, or that was closed.
    pub(super) fn is_leaving(&self) -> bool {
        let mut watched = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let [stream] = match poll(&mut watched, Some(&at_once)) {
            Ok(_) => watched,
            Err(_) => return false,
        };
        stream.revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
    }

    /// What becomes ready when it leaves, while it has not.
    pub(super) fn hang_up(&self) -> Option<PollFd<'_>> {
        (!self.is_leaving()).then(|| PollFd::new(&self.stream, PollFlags::RDHUP))
    }

    /// How it left, once it has.
    pub(super) fn left(self) -> String {
        match self.thread.join() {
            Ok(Disconnect::Closed) => "the frontend has left".to_owned(),
            Ok(Disconnect::Failed(error)) => format!("the frontend was disconnected: {error}"),
            Err(_) => "the frontend's thread panicked".to_owned(),
        }
    }
}

impl AsFd for Frontend {
    /// Readable once it has left.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }
}
