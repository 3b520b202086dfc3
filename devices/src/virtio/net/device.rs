//! The device and the handlers of its two queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ::block::{LogLimit, Segments};

use super::tap::{HEADER_BYTES, Tap};
use crate::GuestMap;
use crate::virtio::chain_worker::{self, ChainHandler, Handled};
use crate::virtio::device::{Activation, DeviceType, VirtioDevice, read_config_bytes};
use crate::virtqueue::{Chain, QueueError};
use crate::worker::{StartError, Worker};

/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Offset of `num_buffers` in `struct virtio_net_hdr` (§5.1.6).
const NUM_BUFFERS_OFFSET: u64 = 10;

/// Feature bits (§5.1.3).
mod feature {
    /// The device handles transmitted packets with partial checksum.
    pub(super) const CSUM: u64 = 1 << 0;
    /// The driver handles received packets with partial checksum.
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    /// The device segments transmitted packets.
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

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, StartError> {
        self.tap
            .set_offloads(activation.features & feature::GUEST_CSUM != 0)
            .map_err(|source| StartError::Host { what: "set the tap's offloads", source })?;
        let faults = activation.faults.clone();
        activation.start_workers(|active| {
            let (tap, faults) = (Arc::clone(&self.tap), faults.clone());
            let segments = Segments::with_capacity(64);
            if active.index == 0 {
                let name = format!("{}/rx", tap.name());
                chain_worker::spawn(name, active, faults, ReceiveQueue::new(tap, segments))
            } else {
                let name = format!("{}/tx", tap.name());
                chain_worker::spawn(name, active, faults, TransmitQueue { tap, segments })
            }
        })
    }
}

/// Receives frames from the tap into chains.
struct ReceiveQueue {
    tap: Arc<Tap>,
    segments: Segments,
    /// Time to the next attempt while the host refuses.
    retry_after: Option<Duration>,
    /// Bounds the log of failures.
    refused: LogLimit,
    /// The current failure is in the log, so that its end is logged as well.
    failure_logged: bool,
}

impl ReceiveQueue {
    const FIRST_RETRY: Duration = Duration::from_millis(10);
    const MAX_RETRY: Duration = Duration::from_secs(1);

    fn new(tap: Arc<Tap>, segments: Segments) -> Self {
        let refused = LogLimit::default();
        Self { tap, segments, retry_after: None, refused, failure_logged: false }
    }

    /// Handles a failed receive: logs it once and retries with exponential backoff.
    fn back_off(&mut self, error: &io::Error) -> Handled {
        let name = self.tap.name();
        if self.retry_after.is_none()
            && let Some(suppressed) = self.refused.check()
        {
            tracing::error!(
                target: "virtio-net", suppressed,
                "{name}: cannot receive: {error}; create the interface again if it was deleted"
            );
            self.failure_logged = true;
        }
        self.tap.reattach_after(error);
        let next = self.retry_after.map_or(Self::FIRST_RETRY, |last| last * 2).min(Self::MAX_RETRY);
        self.retry_after = Some(next);
        Handled::Retry(next)
    }
}

impl ChainHandler for ReceiveQueue {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        self.segments.clear();
        let buffer = chain.writable();
        if buffer.len() < u64::from(HEADER_BYTES) || buffer.map(map, &mut self.segments).is_err() {
            return Ok(Handled::Used(0));
        }
        let received = match self.tap.receive(&mut self.segments) {
            Ok(received) => received,
            Err(error) => return Ok(self.back_off(&error)),
        };
        if self.retry_after.take().is_some() && std::mem::take(&mut self.failure_logged) {
            tracing::warn!(target: "virtio-net", "{}: receives again", self.tap.name());
        }
        let Some(received) = received else { return Ok(Handled::WaitForSource) };
        // §5.1.6.4.1: one buffer per frame without VIRTIO_NET_F_MRG_RXBUF.
        if let Some((_, tail)) = buffer.split_at(NUM_BUFFERS_OFFSET) {
            let _ = tail.write(map, &1u16.to_le_bytes());
        }
        Ok(Handled::Used(received))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }
}

/// Transmits frames from chains to the tap.
struct TransmitQueue {
    tap: Arc<Tap>,
    segments: Segments,
}

impl ChainHandler for TransmitQueue {
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
    fn receive_retries_back_off() {
        let tap = Arc::new(Tap::over(tempfile::tempfile().unwrap()));
        let segments = Segments::with_capacity(1);
        let mut queue = ReceiveQueue::new(tap, segments);
        let error = io::Error::from_raw_os_error(libc::EIO);
        let expected = [10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(Duration::from_millis);
        for expected in expected {
            assert!(matches!(queue.back_off(&error), Handled::Retry(after) if after == expected));
        }
    }
}
