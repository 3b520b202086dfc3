//! The virtio network device (Virtio 1.2 §5.1) over a tap device: one pair of queues.
//!
//! The tap device speaks the virtio header itself (`IFF_VNET_HDR`), so that frames pass through
//! untouched, and the host's kernel checks the headers the guest writes.

mod tap;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ::block::Segments;

pub use self::tap::{Tap, TapError};
use super::chain_worker::{self, ChainHandler, Handled};
use super::device::read_config_bytes;
use super::guest_map::GuestMap;
use super::{ActivateError, Activation, Chain, DeviceType, QueueError, VirtioDevice, Worker};

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
                    let receive = Receive { tap, segments, gone: false };
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
    /// The host took the interface away: nothing will come any more.
    gone: bool,
}

impl ChainHandler for Receive {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        self.segments.clear();
        let buffer = chain.writable();
        if buffer.len() < u64::from(HEADER_BYTES) || buffer.map(map, &mut self.segments).is_err() {
            return Ok(Handled::Used(0));
        }
        let received = match self.tap.receive(&mut self.segments) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(Handled::Wait),
            Err(error) => {
                tracing::error!(target: "virtio-net", "{}: cannot receive: {error}", self.tap.name());
                self.gone = true;
                return Ok(Handled::Wait);
            }
        };
        // §5.1.6.4.1: one buffer per frame unless merging was negotiated.
        if let Some((_, tail)) = buffer.split_at(NUM_BUFFERS_OFFSET) {
            let _ = tail.write(map, &1u16.to_le_bytes());
        }
        Ok(Handled::Used(received))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.gone).then(|| self.tap.as_fd())
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
