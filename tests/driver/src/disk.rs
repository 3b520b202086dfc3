//! virtio-blk requests (Virtio 1.2 §5.2.6) in whatever framing a driver may choose (§2.7.4).

use std::collections::VecDeque;

use super::{Arena, Descriptor, Device, Ring, Used, feature};

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

/// What the driver leaves in buffers that the device is to fill.
const POISON: u8 = 0xa5;
/// What the driver leaves in the status byte.
const NO_STATUS: u8 = 0xff;

/// The data of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// To the device.
    Out(Vec<u8>),
    /// From the device, this many bytes.
    In(u32),
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`kind`].
    pub kind: u32,
    /// Where, in sectors.
    pub sector: u64,
    /// What goes with it.
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

    /// A write.
    #[must_use]
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self { kind: kind::OUT, sector, data: Data::Out(data.to_vec()) }
    }

    /// A discard or zeroing with the given segments: sector, sectors, flags.
    #[must_use]
    pub fn ranges(kind: u32, segments: &[(u64, u32, u32)]) -> Self {
        let bytes = segments.iter().flat_map(|(sector, sectors, flags)| {
            let words = sectors.to_le_bytes().into_iter().chain(flags.to_le_bytes());
            sector.to_le_bytes().into_iter().chain(words)
        });
        Self { kind, sector: 0, data: Data::Out(bytes.collect()) }
    }

    /// Everything the device reads: header and data.
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

    /// Bytes of data from the device.
    #[must_use]
    pub fn data_in(&self) -> u32 {
        if let Data::In(len) = self.data { len } else { 0 }
    }
}

/// How the bytes of a request are cut into buffers: the lengths of all but the last, in order. Lengths
/// beyond the request's end are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Of header and data.
    pub readable: Vec<u32>,
    /// Of data and status.
    pub writable: Vec<u32>,
    /// Whether the chain is in a table of its own.
    pub indirect: bool,
}

impl Framing {
    /// As most drivers do it: header, data and status apart.
    #[must_use]
    pub fn usual(request: &Request) -> Self {
        Self { readable: vec![16], writable: vec![request.data_in()], indirect: false }
    }

    /// `len` bytes from `addr`, cut.
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

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Its chain's head.
    pub head: u16,
    /// Where header and data to the device are.
    pub readable: u64,
    /// Where data from the device and, last, the status are.
    pub writable: u64,
    /// How long the latter is.
    pub writable_len: u32,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status byte.
    pub status: u8,
    /// The length in the used ring.
    pub written: u32,
    /// The data from the device.
    pub data: Vec<u8>,
}

/// A block device with its driver running.
pub struct Disk {
    /// The device.
    pub device: Device,
    /// What was negotiated.
    pub features: u64,
    /// Its queues.
    pub rings: Vec<Ring>,
    /// Memory for buffers.
    pub arena: Arena,
}

impl Disk {
    /// Brings up the device with those of `features` it offers and queues of `size`.
    #[must_use]
    pub fn start(device: Device, features: u64, size: u16) -> Self {
        let features = device.offered() & (features | feature::VERSION_1);
        assert!(device.negotiate(features), "the device takes what it offered");
        let mut rings_at = Arena::new(0x1_0000, 0x10_0000);
        let queue = |index| device.queue(index, size, features, &mut rings_at);
        let rings = (0..device.queues()).map(queue).collect();
        device.enable_interrupts();
        device.start();
        Self { device, features, rings, arena: Arena::new(0x10_0000, super::LOW_BYTES) }
    }

    /// Resets the device and brings it up again as it was.
    pub fn restart(&mut self) {
        self.device.reset();
        let size = self.rings[0].layout().size;
        *self = Self::start(self.device.clone(), self.features, size);
    }

    /// Offers a request on `queue`, not yet published.
    pub fn offer(&mut self, queue: usize, request: &Request, framing: &Framing) -> Placed {
        let bytes = request.readable();
        let readable_len = u32::try_from(bytes.len()).unwrap();
        let readable = self.arena.take(bytes.len() as u64, 8);
        self.device.machine().put(readable, &bytes);
        let writable_len = request.data_in() + 1;
        let writable = self.arena.take(writable_len.into(), 8);
        let mut poison = vec![POISON; writable_len as usize];
        *poison.last_mut().unwrap() = NO_STATUS;
        self.device.machine().put(writable, &poison);

        let from_driver = Framing::cut(readable, readable_len, &framing.readable).into_iter();
        let from_device = Framing::cut(writable, writable_len, &framing.writable).into_iter();
        let chain: Vec<_> = from_driver
            .map(|(addr, len)| Descriptor::readable(addr, len))
            .chain(from_device.map(|(addr, len)| Descriptor::writable(addr, len)))
            .collect();
        let table = self.arena.take(16 * chain.len() as u64, 16);
        let ring = &mut self.rings[queue];
        let head =
            if framing.indirect { ring.offer_indirect(table, &chain) } else { ring.offer(&chain) };
        Placed { head, readable, writable, writable_len }
    }

    /// Publishes what was offered on `queue`, and kicks if the device wants it.
    pub fn kick(&mut self, queue: usize) {
        if self.rings[queue].publish() {
            self.device.function.kick(u16::try_from(queue).unwrap());
        }
    }

    /// Offers and publishes one request on queue 0.
    pub fn submit(&mut self, request: &Request) -> Placed {
        let placed = self.offer(0, request, &Framing::usual(request));
        self.kick(0);
        placed
    }

    /// What the driver finds in a request's buffers once its chain was used.
    #[must_use]
    pub fn outcome(&self, placed: &Placed, used: Used) -> Outcome {
        assert_eq!(used.id, u32::from(placed.head), "another chain was used");
        let mut data = self.device.machine().get(placed.writable, placed.writable_len.into());
        let status = data.pop().unwrap();
        Outcome { status, written: used.len, data }
    }

    /// Waits for the requests of queue 0, whatever their order, and returns the outcomes in theirs.
    pub fn wait_all(&mut self, placed: &[Placed]) -> Vec<Outcome> {
        let mut used: VecDeque<Used> =
            (0..placed.len()).map(|_| self.rings[0].wait_used()).collect();
        let outcome = |placed: &Placed| {
            let at = used.iter().position(|used| used.id == u32::from(placed.head));
            self.outcome(placed, used.remove(at.expect("each chain is used once")).unwrap())
        };
        placed.iter().map(outcome).collect()
    }

    /// Runs one request in the given framing on `queue`.
    pub fn run_framed(&mut self, queue: usize, request: &Request, framing: &Framing) -> Outcome {
        let placed = self.offer(queue, request, framing);
        self.kick(queue);
        let used = self.rings[queue].wait_used();
        self.outcome(&placed, used)
    }

    /// Runs one request on queue 0.
    pub fn run(&mut self, request: &Request) -> Outcome {
        self.run_framed(0, request, &Framing::usual(request))
    }

    /// Reads, which succeeds.
    pub fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let outcome = self.run(&Request::read(sector, len));
        assert_eq!(outcome.status, 0, "the read succeeds");
        outcome.data
    }

    /// Writes, which succeeds.
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.run(&Request::write(sector, data)).status, 0, "the write succeeds");
    }

    /// Flushes, which succeeds.
    pub fn flush(&mut self) {
        assert_eq!(self.run(&Request::bare(kind::FLUSH)).status, 0, "the flush succeeds");
    }
}
