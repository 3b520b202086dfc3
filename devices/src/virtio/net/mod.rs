//! The virtio network device (Virtio 1.2 §5.1) over a tap device: one pair of queues.
//!
//! The tap device speaks the virtio header itself (`IFF_VNET_HDR`), so that frames pass through
//! untouched, and the host's kernel checks the headers the guest writes.

mod tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ::block::{LogLimit, Segments};

pub use self::tap::{Tap, TapError};
use super::chain_worker::{self, ChainHandler, Handled};
use super::device::read_config_bytes;
use super::{ActivateError, Activation, Chain, DeviceType, QueueError, VirtioDevice, Worker};
use crate::GuestMap;

const QUEUE_SIZE: u16 = 256;
/// `struct virtio_net_hdr` (§5.1.6), the same with and without merged buffers.
const HEADER_BYTES: u32 = 12;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS_OFFSET: u64 = 10;

/// Feature bits (§5.1.3).
mod feature {
    /// The host completes checksums of frames sent.
    pub(super) const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksum the host has verified or left out.
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    /// The host segments frames sent.
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
}

/// A network card.
pub struct Net {
    tap: Arc<Tap>,
    mac: [u8; 6],
}

impl Net {
    /// A card with address `mac` on `tap`.
    #[must_use]
    pub fn new(tap: Tap, mac: [u8; 6]) -> Self {
        Self { tap: Arc::new(tap), mac }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn name(&self) -> &str {
        self.tap.name()
    }

    fn features(&self) -> u64 {
        use feature::{CSUM, GUEST_CSUM, HOST_TSO4, HOST_TSO6, MAC};
        CSUM | GUEST_CSUM | MAC | HOST_TSO4 | HOST_TSO6
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.mac, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let Activation { features, queues, faults } = activation;
        self.tap
            .set_offloads(features & feature::GUEST_CSUM != 0)
            .map_err(|source| ActivateError::Host { what: "set the tap's offloads", source })?;
        queues
            .into_iter()
            .map(|active| {
                let faults = faults.clone();
                let tap = Arc::clone(&self.tap);
                let segments = Segments::with_capacity(64);
                if active.index == 0 {
                    let name = format!("{}/rx", tap.name());
                    let receive = Receive::new(tap, segments);
                    chain_worker::spawn(name, active, faults, receive)
                } else {
                    let name = format!("{}/tx", tap.name());
                    chain_worker::spawn(name, active, faults, Transmit { tap, segments })
                }
            })
            .collect()
    }
}

/// Frames from the tap into chains.
struct Receive {
    tap: Arc<Tap>,
    segments: Segments,
    /// How long to wait before the host is asked again, while it refuses.
    pause: Option<Duration>,
    trouble: LogLimit,
    /// Whether that it refuses was, so that its end is to be.
    told: bool,
}

impl Receive {
    const FIRST_PAUSE: Duration = Duration::from_millis(10);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);

    fn new(tap: Arc<Tap>, segments: Segments) -> Self {
        Self { tap, segments, pause: None, trouble: LogLimit::default(), told: false }
    }

    /// Nothing can be received now. That is said once; the host is asked again and again.
    fn refused(&mut self, error: &io::Error) -> Handled {
        let name = self.tap.name();
        if self.pause.is_none()
            && let Some(suppressed) = self.trouble.check()
        {
            tracing::error!(target: "virtio-net", suppressed, "{name}: cannot receive: {error}; make the interface again if it was deleted");
            self.told = true;
        }
        self.tap.find_again(error);
        let pause =
            self.pause.map_or(Self::FIRST_PAUSE, |pause| pause * 2).min(Self::LONGEST_PAUSE);
        self.pause = Some(pause);
        Handled::Later(pause)
    }
}

impl ChainHandler for Receive {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        self.segments.clear();
        let buffer = chain.writable();
        if buffer.len() < u64::from(HEADER_BYTES) || buffer.map(map, &mut self.segments).is_err() {
            return Ok(Handled::Used(0));
        }
        let received = match self.tap.receive(&mut self.segments) {
            Ok(received) => received,
            Err(error) => return Ok(self.refused(&error)),
        };
        if self.pause.take().is_some() && std::mem::take(&mut self.told) {
            tracing::warn!(target: "virtio-net", "{}: receives again", self.tap.name());
        }
        let Some(received) = received else { return Ok(Handled::Wait) };
        // §5.1.6.4.1: one buffer per frame unless merging was negotiated.
        if let Some((_, tail)) = buffer.split_at(NUM_BUFFERS_OFFSET) {
            let _ = tail.write(map, &1u16.to_le_bytes());
        }
        Ok(Handled::Used(received))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }
}

/// Frames from chains into the tap.
struct Transmit {
    tap: Arc<Tap>,
    segments: Segments,
}

impl ChainHandler for Transmit {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        self.segments.clear();
        if chain.readable().map(map, &mut self.segments).is_ok() {
            self.tap.send(&self.segments);
        }
        Ok(Handled::Used(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_asked_again_less_and_less_often() {
        let tap = Arc::new(Tap::over(tempfile::tempfile().unwrap()));
        let segments = Segments::with_capacity(1);
        let mut receive = Receive::new(tap, segments);
        let error = io::Error::from_raw_os_error(libc::EIO);
        let pauses = [10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(Duration::from_millis);
        for pause in pauses {
            assert!(matches!(receive.refused(&error), Handled::Later(after) if after == pause));
        }
    }
}
