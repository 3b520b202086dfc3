//! virtio-blk over the queue worker: chains in, status bytes out.

use std::io;
use std::sync::Arc;

use ::block::{IoEngine, Operation, Segments};
use vm_memory::GuestAddress;

use super::control::Shared;
use super::request::{HEADER_BYTES, Header, ID_BYTES, Kind, Limits, RANGE_BYTES, Status};
use crate::storage::queue_worker::{Completed, Parsed, Protocol};
use crate::virtio::{Chain, GuestMap, QueueError, Span};

/// The protocol of one queue of a block device.
pub(super) struct BlockProtocol {
    /// But for the capacity, which may grow.
    pub(super) limits: Limits,
    pub(super) id: [u8; ID_BYTES],
    pub(super) shared: Arc<Shared>,
}

/// What is remembered of a request: where its status goes, and what to say was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    status: GuestAddress,
    /// Bytes written by a success, with the status.
    success: u32,
    /// Bytes written by a failure, with the status.
    failure: u32,
}

impl Pending {
    /// Of a request with `data_len` writable bytes before the status, of which a success fills `filled`. What was written
    /// counts from the first writable byte and ends at the first one left as it was (§2.7.8.2).
    #[inline]
    fn new(status: GuestAddress, data_len: u64, filled: u64) -> Self {
        let written =
            |filled| u32::try_from(filled + u64::from(filled == data_len)).unwrap_or(u32::MAX);
        Self { status, success: written(filled), failure: written(0) }
    }

    /// Writes the status byte, which comes last (§5.2.6.2), and returns the bytes written.
    #[inline]
    fn finish(self, map: &GuestMap, status: Status) -> u32 {
        // The byte was seen to lie in guest memory when the chain was parsed.
        map.store_byte(self.status, status as u8);
        if status == Status::Ok { self.success } else { self.failure }
    }
}

/// What a well-formed request asks.
enum Ask {
    Disk(Operation),
    Answered { filled: u64 },
}

impl Protocol for BlockProtocol {
    type Pending = Pending;
    type Engines = Box<dyn IoEngine>;

    #[inline]
    fn parse(&mut self, chain: &Chain, map: &GuestMap, segments: &mut Segments) -> Parsed<Pending> {
        match self.parse_simple(chain, map, segments) {
            Some((op, pending)) => Parsed::Io { unit: 0, op, pending },
            None => self.parse_any(chain, map, segments),
        }
    }

    #[inline]
    fn complete(
        &mut self,
        pending: &mut Pending,
        map: &GuestMap,
        result: io::Result<()>,
        _segments: &mut Segments,
    ) -> Completed {
        let status = Status::from(&result);
        if let Err(error) = result {
            self.warn(&error);
        }
        Completed::Done { written: pending.finish(map, status) }
    }
}

impl BlockProtocol {
    #[cold]
    fn warn(&self, error: &io::Error) {
        // The disk names each kind of failure once a minute; a guest can bring them about at will.
        tracing::debug!(target: "virtio-blk", "{}: a request failed: {error}", self.shared.name);
    }

    /// Parses what most requests are: a read or write of one piece of memory, with nothing wrong. Of any other
    /// nothing is kept: it is read anew and judged by [`Self::parse_any`].
    #[inline]
    fn parse_simple(
        &self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Option<(Operation, Pending)> {
        let framed = chain.framed()?;
        let Header { kind, sector } = Header::decode(map.load_16(framed.header)?)?;
        let len = u64::from(framed.data.len);
        let (op, data_len) = match kind {
            Kind::In if framed.writable => (self.limits().read(sector, len), len),
            Kind::Out if !framed.writable => {
                let durability = self.shared.write_cache.durability();
                (self.limits().write(sector, len, durability), 0)
            }
            _ => return None,
        };
        let op = op.ok()?;
        let segment = map.segment(framed.data.addr, framed.data.len)?;
        if !map.holds_byte(framed.status) {
            return None;
        }
        segments.push(segment);
        Some((op, Pending::new(framed.status, data_len, data_len)))
    }

    /// Parses any request.
    #[inline(never)]
    fn parse_any(&self, chain: &Chain, map: &GuestMap, segments: &mut Segments) -> Parsed<Pending> {
        let Some((data_in, status)) = split_status(chain, map) else {
            return Parsed::Fatal(QueueError::NoStatus);
        };
        let pending = |filled| Pending::new(status, data_in.len(), filled);
        match self.read_request(chain.readable(), data_in, map, segments) {
            Ok(Ask::Disk(op)) => {
                let reads = matches!(op, Operation::Read { .. });
                Parsed::Io { unit: 0, op, pending: pending(if reads { data_in.len() } else { 0 }) }
            }
            Ok(Ask::Answered { filled }) => {
                Parsed::Done { written: pending(filled).finish(map, Status::Ok) }
            }
            Err(status) => Parsed::Done { written: pending(0).finish(map, status) },
        }
    }

    /// What requests are checked against now.
    #[inline]
    fn limits(&self) -> Limits {
        Limits { capacity: self.shared.capacity.bytes(), ..self.limits }
    }

    /// Reads the header and what belongs to its type.
    fn read_request(
        &self,
        readable: Span<'_>,
        data_in: Span<'_>,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Result<Ask, Status> {
        let (header, data_out) = readable.split_at(HEADER_BYTES as u64).ok_or(Status::IoError)?;
        let [low, high] = header.read_words(map).map_err(|_| Status::IoError)?;
        let Header { kind, sector } = Header::decode([low, high]).ok_or(Status::Unsupported)?;
        let durability = self.shared.write_cache.durability();
        let limits = self.limits();
        let op = match kind {
            Kind::In => {
                let op = limits.read(sector, data_in.len())?;
                data_in.map(map, segments).map_err(|_| Status::IoError)?;
                op
            }
            Kind::Out => {
                let op = limits.write(sector, data_out.len(), durability)?;
                data_out.map(map, segments).map_err(|_| Status::IoError)?;
                op
            }
            Kind::Flush => Operation::Flush,
            Kind::GetId => {
                data_in.write(map, &self.id).map_err(|_| Status::IoError)?;
                return Ok(Ask::Answered { filled: ID_BYTES as u64 });
            }
            Kind::Discard => limits.discard(read_range(data_out, map)?, durability)?,
            Kind::WriteZeroes => limits.write_zeroes(read_range(data_out, map)?, durability)?,
        };
        Ok(Ask::Disk(op))
    }
}

/// Splits the status byte, the last writable one, from the data before it; `None` if there is none
/// in guest memory.
fn split_status<'a>(chain: &'a Chain, map: &GuestMap) -> Option<(Span<'a>, GuestAddress)> {
    chain.writable_but_last().filter(|(_, status)| map.holds_byte(*status))
}

/// Reads the one range of a discard or zeroing: `max_discard_seg` and `max_write_zeroes_seg` are 1.
fn read_range(data: Span<'_>, map: &GuestMap) -> Result<[u8; RANGE_BYTES], Status> {
    if data.len() != RANGE_BYTES as u64 {
        return Err(Status::IoError);
    }
    data.read_16(map).map_err(|_| Status::IoError)
}
