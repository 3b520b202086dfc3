//! A tap device of the host (Linux `Documentation/networking/tuntap.rst`) with virtio headers.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ::block::Segment;
use rustix::fs::{Mode, OFlags};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

/// Length of `struct virtio_net_hdr` (Virtio 1.2 §5.1.6), with and without merged buffers.
pub(super) const HEADER_BYTES: u32 = 12;
/// Maximum number of segments of a frame; Linux' `UIO_MAXIOV`.
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
    /// The last argument of [`Tap::set_offloads`].
    partial_checksums: AtomicBool,
}

impl Tap {
    /// Opens the existing tap device called `name`.
    ///
    /// # Errors
    ///
    /// The host refuses, for example because the device is in use.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let error = |what| move |source| TapError { name: name.to_owned(), what, source };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device: OwnedFd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|errno| error("open /dev/net/tun")(errno.into()))?;
        let partial_checksums = AtomicBool::new(false);
        let tap = Self { name: name.to_owned(), device: device.into(), partial_checksums };
        tap.attach().map_err(error("attach to it"))?;
        tap.set_header_size().map_err(error("set its header size"))?;
        Ok(tap)
    }

    /// A file instead of a tap device.
    #[cfg(test)]
    pub(super) fn over(device: File) -> Self {
        Self { name: "test".to_owned(), device, partial_checksums: AtomicBool::new(false) }
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Attaches to a new interface of the same name if `error` says that the old one was deleted.
    /// Creates none: its deletion may be intended.
    pub(super) fn reattach_after(&self, error: &io::Error) {
        if !is_deleted(error) || !self.exists() || self.attach().is_err() {
            return;
        }
        let partial_checksums = self.partial_checksums.load(Ordering::Relaxed);
        let set_up = self.set_header_size().and_then(|()| self.set_offloads(partial_checksums));
        if let Err(error) = set_up {
            // At most once per creation of the interface.
            let name = &self.name;
            tracing::error!(
                target: "virtio-net",
                "{name}: frames may be malformed: cannot configure the new interface: {error}"
            );
        }
    }

    fn exists(&self) -> bool {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
        socket.and_then(|socket| name_to_index(&socket, &self.name)).is_ok()
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

    fn set_header_size(&self) -> io::Result<()> {
        let size = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        check(unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size)
        })
    }

    /// Sets whether the guest accepts partial checksums. A deleted interface is configured when it
    /// exists again.
    pub(super) fn set_offloads(&self, partial_checksums: bool) -> io::Result<()> {
        self.partial_checksums.store(partial_checksums, Ordering::Relaxed);
        let offloads = if partial_checksums { libc::TUN_F_CSUM } else { 0 };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let set = check(unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
        });
        set.or_else(|error| if is_deleted(&error) { Ok(()) } else { Err(error) })
    }

    /// Receives one frame into the segments and returns its length in bytes; `None` if no frame is
    /// available.
    ///
    /// # Errors
    ///
    /// The host's error, for example because the interface was deleted. It may be temporary.
    pub(super) fn receive(&self, segments: &mut [Segment]) -> io::Result<Option<u32>> {
        let (iovecs, count) = iovecs(segments);
        // SAFETY: each segment is guest memory that the calling worker keeps mapped.
        let received = unsafe { libc::readv(self.device.as_raw_fd(), iovecs, count) };
        match u32::try_from(received) {
            Ok(received) => Ok(Some(received)),
            Err(_) => match io::Error::last_os_error() {
                error if is_retryable(&error) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends one frame. A frame that the host refuses is dropped, as on a wire.
    pub(super) fn send(&self, segments: &[Segment]) {
        let (iovecs, count) = iovecs(segments);
        // SAFETY: each segment is guest memory that the calling worker keeps mapped.
        let sent = unsafe { libc::writev(self.device.as_raw_fd(), iovecs, count) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(target: "virtio-net", "{}: dropped a frame: {error}", self.name);
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Segments as arguments of a system call: a `Segment` is an `iovec`.
fn iovecs(segments: &[Segment]) -> (*const libc::iovec, libc::c_int) {
    let count = libc::c_int::try_from(segments.len().min(MAX_SEGMENTS)).unwrap_or(0);
    (segments.as_ptr().cast(), count)
}

/// Whether the interface was deleted.
fn is_deleted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// Whether the call can simply be repeated later.
fn is_retryable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
