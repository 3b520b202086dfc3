//! The NBD server of a disk with a volatile cache: one thread accepts, one serves each connection.
//!
//! A cut of the power ends all answers at once: requests and the cut take turns on the disk.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::cut::CutDisk;
use super::protocol::{
    Command, EINVAL, EIO, FUA, Header, MOST_BYTES, negotiate, read_header, reply_header,
};
use super::store::{Requests, Store};

/// The name of the export.
pub const EXPORT: &str = "disk";
/// Connections at a time.
const MOST_CONNECTIONS: usize = 4;

/// The disk, until its power is cut, and the connections.
#[derive(Debug, Default)]
struct Shared {
    store: Option<Store>,
    connections: Vec<(u64, UnixStream)>,
    accepted: u64,
    workers: Vec<JoinHandle<()>>,
}

/// A server of one disk. Stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    shared: Arc<Mutex<Shared>>,
    acceptor: Option<JoinHandle<()>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Serves `store` on the unix socket `socket`.
    ///
    /// # Errors
    ///
    /// The socket cannot be made, or the host has no thread.
    pub fn start(store: Store, socket: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let shared = Arc::new(Mutex::new(Shared { store: Some(store), ..Shared::default() }));
        let of_acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("nbd".to_owned())
            .spawn(move || accept(&listener, &of_acceptor))?;
        Ok(Self { socket: socket.to_owned(), shared, acceptor: Some(acceptor) })
    }

    /// Requests since the start; `None` after a cut.
    #[must_use]
    pub fn requests(&self) -> Option<Requests> {
        lock(&self.shared).store.as_ref().map(Store::requests)
    }

    /// Cuts the power: no request that has not been executed will be.
    ///
    /// # Errors
    ///
    /// It was cut before.
    pub fn cut(&self) -> io::Result<CutDisk> {
        let mut shared = lock(&self.shared);
        let store = shared.store.take().ok_or_else(|| io::Error::other("the power is off"))?;
        close(&shared);
        drop(shared);
        let (_, unflushed) = store.into_unflushed();
        Ok(CutDisk { unflushed })
    }
}

fn close(shared: &Shared) {
    for (_, connection) in &shared.connections {
        // Fails if the client has left.
        connection.shutdown(Shutdown::Both).ok();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.store = None;
        close(&shared);
        let workers = std::mem::take(&mut shared.workers);
        drop(shared);
        // Wakes the acceptor, which sees that there is no disk.
        UnixStream::connect(&self.socket).ok();
        std::fs::remove_file(&self.socket).ok();
        for thread in workers.into_iter().chain(self.acceptor.take()) {
            thread.join().ok();
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Mutex<Shared>>) {
    for connection in listener.incoming() {
        let mut locked = lock(shared);
        if locked.store.is_none() {
            return;
        }
        let Ok(connection) = connection else { continue };
        let (Ok(copy), true) =
            (connection.try_clone(), locked.connections.len() < MOST_CONNECTIONS)
        else {
            continue;
        };
        locked.accepted += 1;
        let id = locked.accepted;
        locked.connections.push((id, copy));
        locked.workers.retain(|worker| !worker.is_finished());
        let of_worker = Arc::clone(shared);
        let worker = thread::Builder::new().name("nbd client".to_owned()).spawn(move || {
            // A client that breaks the protocol or leaves ends its connection only.
            serve(&connection, &of_worker).ok();
            lock(&of_worker).connections.retain(|(other, _)| *other != id);
            connection.shutdown(Shutdown::Both).ok();
        });
        locked.workers.extend(worker);
    }
}

fn serve(mut client: &UnixStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let Some(size) = lock(shared).store.as_ref().map(Store::size) else { return Ok(()) };
    if !negotiate(&mut client, EXPORT, size)? {
        return Ok(());
    }
    while let Some(header) = read_header(&mut client)? {
        if header.command == Command::Disconnect {
            return Ok(());
        }
        let data = payload(&mut client, &header)?;
        let mut locked = lock(shared);
        let Some(store) = locked.store.as_mut() else { return Ok(()) };
        let (status, data) = match execute(store, &header, &data) {
            Ok(data) => (0, data),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => (EINVAL, Vec::new()),
            Err(_) => (EIO, Vec::new()),
        };
        drop(locked);
        let mut reply = reply_header(header.cookie, status);
        reply.extend(data);
        client.write_all(&reply)?;
    }
    Ok(())
}

/// The data that follows the header of a write. One that is too long ends the connection, as it
/// could not be skipped in bounded time.
fn payload(client: &mut impl Read, header: &Header) -> io::Result<Vec<u8>> {
    if header.command != Command::Write {
        return Ok(Vec::new());
    }
    if header.len > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "length of a write"));
    }
    let mut data = vec![0; header.len as usize];
    client.read_exact(&mut data)?;
    Ok(data)
}

fn execute(store: &mut Store, header: &Header, data: &[u8]) -> io::Result<Vec<u8>> {
    let fua = header.flags & FUA != 0;
    match header.command {
        Command::Read if header.len <= MOST_BYTES => {
            let mut buffer = vec![0; header.len as usize];
            store.read(header.offset, &mut buffer)?;
            return Ok(buffer);
        }
        Command::Write => store.write(header.offset, data, fua)?,
        Command::Flush => store.flush()?,
        Command::Trim | Command::WriteZeroes => {
            store.zero(header.offset, u64::from(header.len), fua)?;
        }
        Command::Read | Command::Disconnect | Command::Unknown => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(Vec::new())
}
