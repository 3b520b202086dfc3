//! A socket in the file system that others connect to: only its owner may use it, and only one process has it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there is no socket.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Somebody listens there.
    #[error(
        "the {0} {1} is in use: another process listens there; end that one, or name another path"
    )]
    InUse(&'static str, PathBuf),
    /// The host refused.
    #[error("cannot listen at the {0} {1}")]
    Host(&'static str, PathBuf, #[source] io::Error),
}

/// A socket that is listened at, and removed in the end.
#[derive(Debug)]
pub(crate) struct Socket {
    /// What it is for, to say so in messages.
    what: &'static str,
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of what was made at `path`.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`; takes the place of a socket that nobody listens at any more.
    ///
    /// # Errors
    ///
    /// When somebody does, or the host refuses.
    pub(crate) fn claim(what: &'static str, path: &Path) -> Result<Self, Error> {
        let host = |source| Error::Host(what, path.into(), source);
        // Of two who find an abandoned socket, one comes second and finds the other's.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(host)?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|errno| host(errno.into()))?;
        match UnixStream::connect(path) {
            Ok(_) => return Err(Error::InUse(what, path.into())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // A file that is no socket refuses, too.
                remove_socket(path).map_err(host)?;
            }
            Err(_) => {}
        }
        let listener = listen(path).map_err(host)?;
        let identity = identity(path).map_err(host)?;
        Ok(Self { what, path: path.into(), listener, identity })
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if fs::symlink_metadata(path)?.file_type().is_socket() { fs::remove_file(path) } else { Ok(()) }
}

/// Listens with mode 0600 from the start: Linux makes the file with the mode of the unbound socket.
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

impl Drop for Socket {
    fn drop(&mut self) {
        // What somebody else put there is not ours to remove.
        if !identity(&self.path).is_ok_and(|found| found == self.identity) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "{} not removed", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn only_the_owner_may_use_it_and_it_goes_in_the_end() {
        let folder = folder();
        let path = folder.path().join("c");
        let socket = Socket::claim("test socket", &path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("c");
        let _live = Socket::claim("test socket", &path).unwrap();
        let error = Socket::claim("test socket", &path).unwrap_err();
        assert!(matches!(error, Error::InUse(..)));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        UnixStream::connect(&path).expect("still there");
    }

    #[test]
    fn an_abandoned_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("c");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = Socket::claim("test socket", &path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = folder();
        let path = folder.path().join("c");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::claim("test socket", &path), Err(Error::Host(..))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = folder();
        let path = folder.path().join("c");
        let first = Socket::claim("test socket", &path).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let _second = Socket::claim("test socket", &path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }
}
