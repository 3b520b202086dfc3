//! A listening Unix socket: only its owner may connect, and only one process listens.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

use crate::unix_socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// Longest wait for the lock on the socket's folder. Its holders need it for a few system calls.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// The reason there is no socket.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    /// Another process listens there.
    #[error(
        "the {0} {1} is in use: another process listens there; end that one, or name another path"
    )]
    InUse(&'static str, PathBuf),
    /// The host refused.
    #[error("cannot listen on the {0} {1}")]
    Host(&'static str, PathBuf, #[source] io::Error),
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    /// Its purpose, for messages.
    purpose: &'static str,
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl ListeningSocket {
    /// Listens at `path`. A socket file without a listener is replaced.
    ///
    /// # Errors
    ///
    /// Another process listens there, or the host refuses.
    pub(crate) fn bind(purpose: &'static str, path: &Path) -> Result<Self, SocketError> {
        let host = |source| SocketError::Host(purpose, path.into(), source);
        let _lock = lock_folder(path);
        match unix_socket::is_listened_on(path) {
            Ok(()) => return Err(SocketError::InUse(purpose, path.into())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // A regular file refuses connections too, and is kept.
                remove_socket(path).map_err(host)?;
            }
            Err(_) => {}
        }
        let listener = listen(path).map_err(host)?;
        let identity = identity(path).map_err(host)?;
        Ok(Self { purpose, path: path.into(), listener, identity })
    }

    /// The non-blocking listener.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// The lock on the folder keeps two processes from replacing the same file. Any user who may read
/// the folder can hold it, and the program may not be allowed to read it: without the lock, only
/// two starts at the same moment could displace each other's socket.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).ok()?;
    let start = Instant::now();
    while let Err(Errno::WOULDBLOCK | Errno::INTR) =
        flock(&folder, FlockOperation::NonBlockingLockExclusive)
    {
        if start.elapsed() > LOCK_TIMEOUT {
            return None;
        }
        thread::sleep(LOCK_INTERVAL);
    }
    Some(folder)
}

fn remove_socket(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.file_type().is_socket() { fs::remove_file(path) } else { Ok(()) }
}

/// Listens with mode 0600 from the start: Linux creates the file with the mode of the unbound
/// socket.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        // A file that replaced ours belongs to another process.
        if !identity(&self.path).is_ok_and(|found| found == self.identity) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the {}", self.purpose);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn only_the_owner_may_connect_and_the_file_is_removed() {
        let folder = folder();
        let path = folder.path().join("c");
        let socket = ListeningSocket::bind("test socket", &path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_in_use_is_kept() {
        let folder = folder();
        let path = folder.path().join("c");
        let _live = ListeningSocket::bind("test socket", &path).unwrap();
        let error = ListeningSocket::bind("test socket", &path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(..)));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        UnixStream::connect(&path).expect("the first one still listens");
    }

    #[test]
    fn a_socket_of_a_stopped_process_is_kept() {
        const PATIENCE: Duration = Duration::from_millis(10);
        let folder = folder();
        let path = folder.path().join("c");
        let _stopped = ListeningSocket::bind("test socket", &path).unwrap();
        let connect = || unix_socket::connect(&path, PATIENCE);
        let waiting: Vec<_> = (0..=BACKLOG).map(|_| connect().unwrap()).collect();
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::WouldBlock, "{waiting:?}");
        let error = ListeningSocket::bind("test socket", &path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(..)), "{error}");
    }

    #[test]
    fn an_abandoned_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("c");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = ListeningSocket::bind("test socket", &path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_stranger_who_locks_the_folder_delays_a_start_only_briefly() {
        let folder = folder();
        let stranger = File::open(folder.path()).unwrap();
        flock(&stranger, FlockOperation::LockExclusive).unwrap();
        let start = Instant::now();
        let _socket = ListeningSocket::bind("test socket", &folder.path().join("c")).unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_regular_file_is_kept() {
        let folder = folder();
        let path = folder.path().join("c");
        fs::write(&path, "precious").unwrap();
        let outcome = ListeningSocket::bind("test socket", &path);
        assert!(matches!(outcome, Err(SocketError::Host(..))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_kept() {
        let folder = folder();
        let path = folder.path().join("c");
        let first = ListeningSocket::bind("test socket", &path).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let _second = ListeningSocket::bind("test socket", &path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }
}
