//! The connection to one frontend, on its own thread.

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

use super::device::VhostUserBlock;
use crate::event;

/// How a connection ended.
#[derive(Debug)]
pub enum Disconnect {
    /// The frontend closed it.
    Closed,
    /// The frontend sent an invalid message, or the connection failed.
    Failed(Error),
}

/// A connected frontend.
pub struct Connection {
    device: Arc<Mutex<VhostUserBlock>>,
    config_changed: Arc<EventFd>,
    stream: UnixStream,
    messages: BackendReqHandler<Mutex<VhostUserBlock>>,
    /// The channel for requests of the back end (SET_BACKEND_REQ_FD).
    backend_channel: Option<UnixStream>,
}

impl Connection {
    /// A connection of `device` to the frontend at the other end of `stream`.
    ///
    /// # Errors
    ///
    /// The host refuses a descriptor.
    pub fn new(stream: UnixStream, device: Arc<Mutex<VhostUserBlock>>) -> io::Result<Self> {
        let config_changed = device.lock().unwrap_or_else(PoisonError::into_inner).config_changed();
        let messages = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&device));
        Ok(Self { device, config_changed, stream, messages, backend_channel: None })
    }

    /// Serves the frontend until it disconnects. On return its requests in flight have been
    /// returned, and the device is ready for the next frontend.
    pub fn serve(mut self) -> Disconnect {
        let disconnect = loop {
            match self.serve_one() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(Error::Disconnected) => break Disconnect::Closed,
                Err(Error::SocketBroken(error))
                    if error.kind() == io::ErrorKind::ConnectionReset
                        || error.kind() == io::ErrorKind::BrokenPipe =>
                {
                    break Disconnect::Closed;
                }
                Err(error) => break Disconnect::Failed(error),
            }
        };
        self.device.lock().unwrap_or_else(PoisonError::into_inner).disconnect();
        disconnect
    }

    /// Waits for a message or a configuration change and handles it.
    fn serve_one(&mut self) -> Result<(), Error> {
        let changed = event::as_fd(&self.config_changed);
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
            // Fails if the event was consumed before.
            let _ = self.config_changed.read();
            self.announce_config_change();
        }
        if message {
            if let Some(channel) = offered_backend_channel(&self.stream) {
                self.backend_channel = Some(channel);
            }
            self.messages.handle_request()?;
        }
        Ok(())
    }

    /// Notifies the frontend of a configuration change, if it accepts requests of the back end.
    fn announce_config_change(&mut self) {
        /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: code, flags (protocol version 1), size.
        const CONFIG_CHANGE: [[u8; 4]; 3] =
            [2_u32.to_ne_bytes(), 1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()];
        let Some(channel) = &self.backend_channel else {
            tracing::warn!(
                target: "vhost-user",
                "the frontend accepts no notifications: it keeps the old size of the disk"
            );
            return;
        };
        let message = CONFIG_CHANGE.as_flattened();
        match send(channel, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == message.len() => {}
            outcome => {
                tracing::warn!(target: "vhost-user", ?outcome, "cannot notify the frontend");
                self.backend_channel = None;
            }
        }
    }
}

/// The socket in the next message, if that is SET_BACKEND_REQ_FD. The crate `vhost` also reads the
/// message, but cannot send a configuration change through the socket.
fn offered_backend_channel(stream: &UnixStream) -> Option<UnixStream> {
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
