//! Connections to Unix sockets whose listener may be stopped.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects to the socket at `path`. Waits at most `limit` for room in the listener's backlog.
///
/// # Errors
///
/// `WouldBlock` if a process listens and does not accept; else those of `connect(2)`.
pub(crate) fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(UnixStream::from(socket))
}

/// Finds the process that listens at `path`, whether or not it accepts.
///
/// # Errors
///
/// Those of `connect(2)`; `ConnectionRefused` if no process listens on the socket.
pub(crate) fn is_listened_on(path: &Path) -> io::Result<()> {
    /// Enough to see the state of the listener.
    const LIMIT: Duration = Duration::from_millis(10);
    match connect(path, LIMIT) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
