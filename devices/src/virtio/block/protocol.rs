//! virtio-blk on a queue worker: chains to requests, results to status bytes.

use std::io;
use std::sync::Arc;

use ::block::{IoEngine, Operation, Segments};
use vm_memory::GuestAddress;
use zerocopy::transmute;

use super::request::{
    DiscardWriteZeroes, HEADER_BYTES, ID_BYTES, RANGE_BYTES, RequestHeader, RequestLimits,
    RequestType, Status,
};
use super::state::BlockState;
use crate::GuestMap;
use crate::storage::{Completed, Parsed, Protocol};
use crate::virtqueue::{Chain, QueueError, Span};

/// The protocol of one queue.
pub(super) struct BlockProtocol {
    /// Limits as of activation. The capacity may have grown since.
    pub(super) limits: RequestLimits,
    /// The answer to GET_ID.
    pub(super) id: [u8; ID_BYTES],
    pub(super) state: Arc<BlockState>,
}

/// State of a request until it completes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRequest {
    /// Address of the status byte, which is guest memory.
    status: GuestAddress,
    /// Bytes written to the chain on success, including the status.
    written_on_success: u32,
    /// Bytes written to the chain on failure, including the status.
    written_on_failure: u32,
}

impl PendingRequest {
    /// A request with `data_len` device-writable bytes before the status, of which a success fills
    /// `filled`. The used length covers the bytes up to the first one not written (§2.7.8.2).
    #[inline]
    fn new(status: GuestAddress, data_len: u64, filled: u64) -> Self {
        let written =
            |filled| u32::try_from(filled + u64::from(filled == data_len)).unwrap_or(u32::MAX);
        Self { status, written_on_success: written(filled), written_on_failure: written(0) }
    }

    /// Writes the status byte, the last byte of the request (§5.2.6.2). Returns the used length.
    #[inline]
    fn write_status(self, map: &GuestMap, status: Status) -> u32 {
        map.store_byte(self.status, status as u8);
        if status == Status::Ok { self.written_on_success } else { self.written_on_failure }
    }
}

/// A well-formed request.
enum BlockRequest {
    /// An operation for the engine.
    Disk(Operation),
    /// Answered, with this number of bytes of data.
    Answered { filled: u64 },
}

impl Protocol for BlockProtocol {
    type Pending = PendingRequest;
    type Engines = Box<dyn IoEngine>;

    #[inline]
    fn parse(
        &mut self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<PendingRequest> {
        match self.fast_parse(chain, map, segments) {
            Some((op, pending)) => Parsed::Io { unit: 0, op, pending },
            None => self.parse_any(chain, map, segments),
        }
    }

    #[inline]
    fn complete(
        &mut self,
        pending: &mut PendingRequest,
        map: &GuestMap,
        result: io::Result<()>,
        _segments: &mut Segments,
    ) -> Completed {
        let status = Status::from(&result);
        if let Err(error) = result {
            self.log_failure(&error);
        }
        Completed::Done { written: pending.write_status(map, status) }
    }
}

impl BlockProtocol {
    /// Only at debug level: the engine logs each kind of failure, with a limit.
    #[cold]
    fn log_failure(&self, error: &io::Error) {
        tracing::debug!(target: "virtio-blk", "{}: a request failed: {error}", self.state.name);
    }

    /// Fast path: a valid read or write of one buffer. `None` for any other request, including
    /// malformed ones, which [`Self::parse_any`] reads again.
    #[inline]
    fn fast_parse(
        &self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Option<(Operation, PendingRequest)> {
        let parts = chain.fast_parts()?;
        let RequestHeader { kind, sector } = RequestHeader::decode(map.load_16(parts.header)?)?;
        let len = u64::from(parts.data.len);
        let (op, data_len) = match kind {
            RequestType::In if parts.writable => (self.limits().read(sector, len), len),
            RequestType::Out if !parts.writable => {
                let durability = self.state.write_cache.durability();
                (self.limits().write(sector, len, durability), 0)
            }
            _ => return None,
        };
        let op = op.ok()?;
        let segment = map.segment(parts.data.addr, parts.data.len)?;
        if !map.has_byte(parts.status) {
            return None;
        }
        segments.push(segment);
        Some((op, PendingRequest::new(parts.status, data_len, data_len)))
    }

    /// Parses any request.
    #[inline(never)]
    fn parse_any(
        &self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<PendingRequest> {
        let Some((data_in, status)) = split_status(chain, map) else {
            return Parsed::Fatal(QueueError::NoStatus);
        };
        let pending = |filled| PendingRequest::new(status, data_in.len(), filled);
        match self.read_request(chain.readable(), data_in, map, segments) {
            Ok(BlockRequest::Disk(op)) => {
                let filled = if matches!(op, Operation::Read { .. }) { data_in.len() } else { 0 };
                Parsed::Io { unit: 0, op, pending: pending(filled) }
            }
            Ok(BlockRequest::Answered { filled }) => {
                Parsed::Done { written: pending(filled).write_status(map, Status::Ok) }
            }
            Err(status) => Parsed::Done { written: pending(0).write_status(map, status) },
        }
    }

    /// The current limits.
    #[inline]
    fn limits(&self) -> RequestLimits {
        RequestLimits { capacity: self.state.capacity.bytes(), ..self.limits }
    }

    /// Reads the header and the data that its type requires.
    fn read_request(
        &self,
        readable: Span<'_>,
        data_in: Span<'_>,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Result<BlockRequest, Status> {
        let (header, data_out) = readable.split_at(HEADER_BYTES as u64).ok_or(Status::IoError)?;
        let words = header.read_words(map).map_err(|_| Status::IoError)?;
        let RequestHeader { kind, sector } =
            RequestHeader::decode(words).ok_or(Status::Unsupported)?;
        let durability = self.state.write_cache.durability();
        let limits = self.limits();
        let op = match kind {
            RequestType::In => {
                let op = limits.read(sector, data_in.len())?;
                data_in.map(map, segments).map_err(|_| Status::IoError)?;
                op
            }
            RequestType::Out => {
                let op = limits.write(sector, data_out.len(), durability)?;
                data_out.map(map, segments).map_err(|_| Status::IoError)?;
                op
            }
            RequestType::Flush => Operation::Flush,
            RequestType::GetId => {
                data_in.write(map, &self.id).map_err(|_| Status::IoError)?;
                return Ok(BlockRequest::Answered { filled: ID_BYTES as u64 });
            }
            RequestType::Discard => limits.discard(&read_range(data_out, map)?, durability)?,
            RequestType::WriteZeroes => {
                limits.write_zeroes(&read_range(data_out, map)?, durability)?
            }
        };
        Ok(BlockRequest::Disk(op))
    }
}

/// Splits the status byte, the last device-writable one, from the data before it; `None` if it does
/// not exist or is not guest memory.
fn split_status<'a>(chain: &'a Chain, map: &GuestMap) -> Option<(Span<'a>, GuestAddress)> {
    chain.writable_but_last().filter(|(_, status)| map.has_byte(*status))
}

/// Reads the range of a discard or zeroing: `max_discard_seg` and `max_write_zeroes_seg` are 1.
fn read_range(data: Span<'_>, map: &GuestMap) -> Result<DiscardWriteZeroes, Status> {
    if data.len() != RANGE_BYTES as u64 {
        return Err(Status::IoError);
    }
    data.read_16(map).map(|raw| transmute!(raw)).map_err(|_| Status::IoError)
}
