//! virtio-blk requests (Virtio 1.2 §5.2.6) in any framing (§2.7.4).

use std::collections::VecDeque;

use super::{Arena, Descriptor, Device, LOW_BYTES, Ring, Used, feature};

/// Request types.
pub mod kind {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Fill of device-writable buffers before the device writes them.
const POISON: u8 = 0xa5;
/// The status byte before the device writes it.
const NO_STATUS: u8 = 0xff;

/// The data of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Device-readable data.
    Out(Vec<u8>),
    /// Length of the device-writable data.
    In(u32),
}

/// A virtio-blk request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The type, see [`kind`].
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Payload.
    pub data: Data,
}

impl Request {
    /// A request without data.
    #[must_use]
    pub fn bare(kind: u32) -> Self {
        Self { kind, sector: 0, data: Data::Out(vec![]) }
    }

    /// A read of `len` bytes.
    #[must_use]
    pub fn read(sector: u64, len: u32) -> Self {
        Self { kind: kind::IN, sector, data: Data::In(len) }
    }

    /// A write of `data`.
    #[must_use]
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self { kind: kind::OUT, sector, data: Data::Out(data.to_vec()) }
    }

    /// A DISCARD or WRITE_ZEROES of segments: sector, number of sectors, flags.
    #[must_use]
    pub fn ranges(kind: u32, segments: &[(u64, u32, u32)]) -> Self {
        let bytes = segments.iter().flat_map(|(sector, sectors, flags)| {
            let words = sectors.to_le_bytes().into_iter().chain(flags.to_le_bytes());
            sector.to_le_bytes().into_iter().chain(words)
        });
        Self { kind, sector: 0, data: Data::Out(bytes.collect()) }
    }

    /// The device-readable bytes: header and data.
    #[must_use]
    pub fn readable(&self) -> Vec<u8> {
        let mut bytes = self.kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(self.sector.to_le_bytes());
        if let Data::Out(data) = &self.data {
            bytes.extend(data);
        }
        bytes
    }

    /// Length of the device-writable data.
    #[must_use]
    pub fn data_in(&self) -> u32 {
        if let Data::In(len) = self.data { len } else { 0 }
    }
}

/// How a request is divided into buffers: the length of each but the last, in order. Lengths beyond
/// the end of the request are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Buffer lengths of header and device-readable data.
    pub readable: Vec<u32>,
    /// Buffer lengths of device-writable data and status.
    pub writable: Vec<u32>,
    /// Whether the chain is in an indirect table.
    pub indirect: bool,
}

impl Framing {
    /// The framing of most drivers: a buffer each for header, data and status.
    #[must_use]
    pub fn usual(request: &Request) -> Self {
        Self { readable: vec![16], writable: vec![request.data_in()], indirect: false }
    }

    /// Divides `len` bytes at `addr` by the lengths `cuts`.
    fn cut(addr: u64, len: u32, cuts: &[u32]) -> Vec<(u64, u32)> {
        let mut parts = Vec::new();
        let (mut at, mut left) = (addr, len);
        for cut in cuts {
            let part = (*cut).min(left);
            parts.push((at, part));
            (at, left) = (at + u64::from(part), left - part);
        }
        parts.push((at, left));
        parts.retain(|(_, len)| *len != 0);
        parts
    }
}

/// A request whose chain is available to the device.
#[derive(Clone, Copy, Debug)]
pub struct PendingRequest {
    /// Head of the chain.
    pub head: u16,
    /// Address of header and device-readable data.
    pub readable: u64,
    /// Address of the device-writable data, with the status byte last.
    pub writable: u64,
    /// Length of the device-writable data and status.
    pub writable_len: u32,
}

/// The result of a completed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Status byte.
    pub status: u8,
    /// Length in the used ring.
    pub written: u32,
    /// Data the device wrote.
    pub data: Vec<u8>,
}

/// A virtio-blk device and its driver, with DRIVER_OK set.
pub struct Disk {
    /// The device.
    pub device: Device,
    /// Negotiated features.
    pub features: u64,
    /// One ring a queue.
    pub rings: Vec<Ring>,
    /// Memory of the buffers.
    pub arena: Arena,
}

impl Disk {
    /// Initializes the device with those of `features` it offers and queues of `size` entries.
    #[must_use]
    pub fn start(device: Device, features: u64, size: u16) -> Self {
        let features = device.offered_features() & (features | feature::VERSION_1);
        assert!(device.negotiate(features), "the device accepts the features it offered");
        let mut rings_at = Arena::new(0x1_0000, 0x10_0000);
        let queue = |index| device.queue(index, size, features, &mut rings_at);
        let rings = (0..device.queues()).map(queue).collect();
        device.enable_interrupts();
        device.start();
        Self { device, features, rings, arena: Arena::new(0x10_0000, LOW_BYTES) }
    }

    /// Resets the device and initializes it with the same features and queue size.
    pub fn restart(&mut self) {
        self.device.reset();
        let size = self.rings[0].layout().size;
        *self = Self::start(self.device.clone(), self.features, size);
    }

    /// Makes a request available on `queue` without publishing it.
    pub fn offer(&mut self, queue: usize, request: &Request, framing: &Framing) -> PendingRequest {
        let bytes = request.readable();
        let readable_len = u32::try_from(bytes.len()).unwrap();
        let readable = self.arena.alloc(bytes.len() as u64, 8);
        self.device.machine().write(readable, &bytes);
        let writable_len = request.data_in() + 1;
        let writable = self.arena.alloc(writable_len.into(), 8);
        let mut poison = vec![POISON; writable_len as usize];
        *poison.last_mut().unwrap() = NO_STATUS;
        self.device.machine().write(writable, &poison);

        let from_driver = Framing::cut(readable, readable_len, &framing.readable).into_iter();
        let from_device = Framing::cut(writable, writable_len, &framing.writable).into_iter();
        let chain: Vec<_> = from_driver
            .map(|(addr, len)| Descriptor::readable(addr, len))
            .chain(from_device.map(|(addr, len)| Descriptor::writable(addr, len)))
            .collect();
        let table = self.arena.alloc(16 * chain.len() as u64, 16);
        let ring = &mut self.rings[queue];
        let head =
            if framing.indirect { ring.offer_indirect(table, &chain) } else { ring.offer(&chain) };
        PendingRequest { head, readable, writable, writable_len }
    }

    /// Publishes the available chains of `queue` and kicks unless the device suppresses it.
    pub fn kick(&mut self, queue: usize) {
        if self.rings[queue].publish() {
            self.device.function.kick(u16::try_from(queue).unwrap());
        }
    }

    /// Submits one request on queue 0.
    pub fn submit(&mut self, request: &Request) -> PendingRequest {
        let pending = self.offer(0, request, &Framing::usual(request));
        self.kick(0);
        pending
    }

    /// Reads the result of a request from its buffers. `used` must be its used-ring entry.
    #[must_use]
    pub fn outcome(&self, pending: &PendingRequest, used: Used) -> Outcome {
        assert_eq!(used.id, u32::from(pending.head), "the used entry is of another chain");
        let mut data = self.device.machine().read(pending.writable, pending.writable_len.into());
        let status = data.pop().unwrap();
        Outcome { status, written: used.len, data }
    }

    /// Waits for requests of queue 0, completed in any order, and returns their results in
    /// submission order.
    pub fn wait_all(&mut self, pending: &[PendingRequest]) -> Vec<Outcome> {
        let mut used: VecDeque<Used> =
            (0..pending.len()).map(|_| self.rings[0].wait_used()).collect();
        let outcome = |pending: &PendingRequest| {
            let at = used.iter().position(|used| used.id == u32::from(pending.head));
            self.outcome(pending, used.remove(at.expect("each chain is used once")).unwrap())
        };
        pending.iter().map(outcome).collect()
    }

    /// Submits one request on `queue` in the given framing and waits for its result.
    pub fn run_framed(&mut self, queue: usize, request: &Request, framing: &Framing) -> Outcome {
        let pending = self.offer(queue, request, framing);
        self.kick(queue);
        let used = self.rings[queue].wait_used();
        self.outcome(&pending, used)
    }

    /// Submits one request on queue 0 and waits for its result.
    pub fn run(&mut self, request: &Request) -> Outcome {
        self.run_framed(0, request, &Framing::usual(request))
    }

    /// Reads `len` bytes; the read must succeed.
    pub fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let outcome = self.run(&Request::read(sector, len));
        assert_eq!(outcome.status, 0, "the read succeeds");
        outcome.data
    }

    /// Writes `data`; the write must succeed.
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.run(&Request::write(sector, data)).status, 0, "the write succeeds");
    }

    /// Flushes; the flush must succeed.
    pub fn flush(&mut self) {
        assert_eq!(self.run(&Request::bare(kind::FLUSH)).status, 0, "the flush succeeds");
    }
}
