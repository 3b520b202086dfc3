//! One frontend from its first message to its last. Runs on a thread of its own.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::eventfd::EventFd;

use super::Disk;
use crate::event;

/// How a frontend left.
#[derive(Debug)]
pub enum Left {
    /// It closed the connection.
    Closed,
    /// It asked for something that cannot be, or the connection failed.
    Refused(Error),
}

/// A connected frontend.
pub struct Connection {
    disk: Arc<Mutex<Disk>>,
    changed: Arc<EventFd>,
    stream: UnixStream,
    messages: BackendReqHandler<Mutex<Disk>>,
    /// Where the frontend takes messages from us.
    channel: Option<UnixStream>,
}

impl Connection {
    /// The frontend at the other end of `stream`, which gets `disk`.
    ///
    /// # Errors
    ///
    /// The host gives no more descriptors.
    pub fn new(stream: UnixStream, disk: Arc<Mutex<Disk>>) -> io::Result<Self> {
        let changed = disk.lock().unwrap_or_else(PoisonError::into_inner).changed();
        let messages = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&disk));
        Ok(Self { disk, changed, stream, messages, channel: None })
    }

    /// Obeys the frontend until it leaves. On return what it had in flight has been given back, and the disk is free
    /// for the next one.
    pub fn serve(mut self) -> Left {
        let left = loop {
            match self.turn() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(Error::Disconnected) => break Left::Closed,
                Err(Error::SocketBroken(error))
                    if error.kind() == io::ErrorKind::ConnectionReset
                        || error.kind() == io::ErrorKind::BrokenPipe =>
                {
                    break Left::Closed;
                }
                Err(error) => break Left::Refused(error),
            }
        };
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).leave();
        left
    }

    /// Waits for the next message or change, and does what follows.
    fn turn(&mut self) -> Result<(), Error> {
        let changed = event::as_fd(&self.changed);
        let mut watched = [
            PollFd::new(&self.stream, PollFlags::IN),
            PollFd::from_borrowed_fd(changed, PollFlags::IN),
        ];
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::SocketError(error.into())),
        }
        let [message, change] = watched.map(|fd| !fd.revents().is_empty());
        if change {
            // Nothing to take is fine, too.
            let _ = self.changed.read();
            self.announce_change();
        }
        if message {
            if let Some(channel) = offered_channel(&self.stream) {
                self.channel = Some(channel);
            }
            self.messages.handle_request()?;
        }
        Ok(())
    }

    /// Tells the frontend to read the configuration again, if it takes messages.
    fn announce_change(&mut self) {
        /// Code and flags (protocol version 1) of a message without a body.
        const CONFIG_CHANGE: [[u8; 4]; 3] =
            [2_u32.to_ne_bytes(), 1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()];
        let Some(channel) = &self.channel else {
            tracing::warn!(target: "vhost-user", "the frontend cannot be told of the disk's new size");
            return;
        };
        let message = CONFIG_CHANGE.as_flattened();
        match send(channel, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == message.len() => {}
            outcome => {
                tracing::warn!(target: "vhost-user", ?outcome, "the frontend takes no messages");
                self.channel = None;
            }
        }
    }
}

/// The socket that the next message brings, if that is SET_BACKEND_REQ_FD. The crate `vhost` reads that
/// message too, but has no means to send what is to be sent through it.
fn offered_channel(stream: &UnixStream) -> Option<UnixStream> {
    const SET_BACKEND_REQ_FD: u32 = 21;
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let mut code = [0; 4];
    let (read, _) = recv(stream, &mut code[..], peek).ok()?;
    if read != code.len() || u32::from_ne_bytes(code) != SET_BACKEND_REQ_FD {
        return None;
    }
    let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut code)];
    recvmsg(stream, &mut into, &mut control, peek | RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next().map(UnixStream::from),
        _ => None,
    })
}
