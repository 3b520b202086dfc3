//! A tap device of the host (Linux `Documentation/networking/tuntap.rst`), opened with virtio headers.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ::block::Segment;
use rustix::fs::{Mode, OFlags};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

use super::HEADER_BYTES;

/// The most segments of one frame; Linux' `UIO_MAXIOV`.
const MAX_SEGMENTS: usize = 1024;

/// Why a tap device cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("tap {name}: cannot {what}: {source}")]
pub struct TapError {
    name: String,
    what: &'static str,
    source: io::Error,
}

/// An open tap device. Reads and writes do not block.
pub struct Tap {
    name: String,
    device: File,
    /// What [`Tap::set_offloads`] was told.
    checksums: AtomicBool,
}

impl Tap {
    /// Opens the tap device called `name`, which exists already.
    ///
    /// # Errors
    ///
    /// When the host refuses, for one because it is in use.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let error = |what| move |source| TapError { name: name.to_owned(), what, source };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device: OwnedFd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|errno| error("open /dev/net/tun")(errno.into()))?;
        let checksums = AtomicBool::new(false);
        let tap = Self { name: name.to_owned(), device: device.into(), checksums };
        tap.attach().map_err(error("attach to it"))?;
        tap.set_header_size().map_err(error("set its header size"))?;
        Ok(tap)
    }

    /// After `error`: where the interface was deleted, attaches to the one that has its name now. Makes none: the host's
    /// administrator may want it gone.
    pub(super) fn find_again(&self, error: &io::Error) {
        if !is_gone(error) || !self.exists() || self.attach().is_err() {
            return;
        }
        let checksums = self.checksums.load(Ordering::Relaxed);
        let set_up = self.set_header_size().and_then(|()| self.set_offloads(checksums));
        if let Err(error) = set_up {
            // Only once for each time that the interface is made.
            let name = &self.name;
            tracing::error!(target: "virtio-net", "{name}: frames may be malformed: the interface that was made again cannot be set up as the one before: {error}");
        }
    }

    fn exists(&self) -> bool {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
        socket.and_then(|socket| name_to_index(&socket, &self.name)).is_ok()
    }

    fn set_header_size(&self) -> io::Result<()> {
        let size = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        check(unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size)
        })
    }

    /// A file in the place of a tap device.
    #[cfg(test)]
    pub(super) fn over(device: File) -> Self {
        Self { name: "test".to_owned(), device, checksums: AtomicBool::new(false) }
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self) -> io::Result<()> {
        // SAFETY: an all-zero `ifreq` is a valid value of this C struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if self.name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
    }

    /// Says whether the guest takes frames with checksums left out. An interface that is gone hears of it when it is back.
    pub(super) fn set_offloads(&self, checksums: bool) -> io::Result<()> {
        self.checksums.store(checksums, Ordering::Relaxed);
        let offloads = if checksums { libc::TUN_F_CSUM } else { 0 };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let set = check(unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
        });
        set.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })
    }

    /// Receives one frame into the segments and returns its length; `None` if none is there.
    ///
    /// # Errors
    ///
    /// The host's refusal, for one because the interface is gone. It may end.
    pub(super) fn receive(&self, segments: &mut [Segment]) -> io::Result<Option<u32>> {
        let (iovecs, count) = iovecs(segments);
        // SAFETY: each segment is guest memory that the calling worker keeps mapped.
        let received = unsafe { libc::readv(self.device.as_raw_fd(), iovecs, count) };
        match u32::try_from(received) {
            Ok(received) => Ok(Some(received)),
            Err(_) => match io::Error::last_os_error() {
                error if is_passing(&error) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends one frame. As on a wire, one that the host does not take is lost.
    pub(super) fn send(&self, segments: &[Segment]) {
        let (iovecs, count) = iovecs(segments);
        // SAFETY: each segment is guest memory that the calling worker keeps mapped.
        let sent = unsafe { libc::writev(self.device.as_raw_fd(), iovecs, count) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(target: "virtio-net", "{}: a frame was lost: {error}", self.name);
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Segments as the system calls take them: a `Segment` is an `iovec`.
fn iovecs(segments: &[Segment]) -> (*const libc::iovec, libc::c_int) {
    let count = libc::c_int::try_from(segments.len().min(MAX_SEGMENTS)).unwrap_or(0);
    (segments.as_ptr().cast(), count)
}

/// Whether the interface was deleted.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// Whether nothing is wrong.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
