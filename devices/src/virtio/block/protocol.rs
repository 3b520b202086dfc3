//! virtio-blk over the queue worker: chains in, status bytes out.

use std::io;
use std::sync::Arc;

use ::block::{Operation, Segments};
use vm_memory::{GuestAddress, VolatileMemory};

use super::control::Shared;
use super::request::{HEADER_BYTES, Header, ID_BYTES, Kind, Limits, RANGE_BYTES, Status};
use crate::GuestMemory;
use crate::virtio::guest_slice::slice;
use crate::virtio::queue_worker::{Parsed, Protocol};
use crate::virtio::{Chain, QueueError, Span};

/// The protocol of one queue of a block device.
pub(super) struct BlockProtocol {
    /// But for the capacity, which may grow.
    pub(super) limits: Limits,
    pub(super) id: [u8; ID_BYTES],
    pub(super) shared: Arc<Shared>,
}

/// What is remembered of a request: where its status goes, and what to say was written. That counts
/// from the first writable byte and ends at the first one left as it was (§2.7.8.2).
#[derive(Debug)]
pub(super) struct Pending {
    status: GuestAddress,
    /// Bytes before the status.
    data_len: u64,
    /// How many of them a success fills.
    filled: u64,
}

impl Pending {
    /// Writes the status byte, which comes last (§5.2.6.2), and returns the bytes written.
    fn finish(self, memory: &GuestMemory, status: Status) -> u32 {
        // The byte was seen to lie in guest memory when the chain was parsed.
        if let Some(slice) = slice(memory, self.status, 1)
            && let Ok(place) = slice.get_ref(0)
        {
            place.store(status as u8);
        }
        let filled = if status == Status::Ok { self.filled } else { 0 };
        let written = filled + u64::from(filled == self.data_len);
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

/// What a well-formed request asks.
enum Ask {
    Disk(Operation),
    Answered { filled: u64 },
}

impl Protocol for BlockProtocol {
    type Pending = Pending;

    fn parse(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
        segments: &mut Segments,
    ) -> Parsed<Pending> {
        let Some((data_in, mut pending)) = split_status(chain, memory) else {
            return Parsed::Fatal(QueueError::NoStatus);
        };
        match self.read_request(chain.readable(), data_in, memory, segments) {
            Ok(Ask::Disk(op)) => {
                let reads = matches!(op, Operation::Read { .. });
                pending.filled = if reads { data_in.len() } else { 0 };
                Parsed::Io { op, pending }
            }
            Ok(Ask::Answered { filled }) => {
                pending.filled = filled;
                Parsed::Done { written: pending.finish(memory, Status::Ok) }
            }
            Err(status) => Parsed::Done { written: pending.finish(memory, status) },
        }
    }

    fn complete(&mut self, pending: Pending, memory: &GuestMemory, result: io::Result<()>) -> u32 {
        let status = Status::from(&result);
        if let Err(error) = result {
            tracing::warn!(target: "virtio-blk", "{}: a request failed: {error}", self.shared.name);
        }
        pending.finish(memory, status)
    }
}

impl BlockProtocol {
    /// Reads the header and what belongs to its type.
    fn read_request(
        &self,
        readable: Span<'_>,
        data_in: Span<'_>,
        memory: &GuestMemory,
        segments: &mut Segments,
    ) -> Result<Ask, Status> {
        let (header, data_out) = readable.split_at(HEADER_BYTES as u64).ok_or(Status::IoError)?;
        let raw = header.read_16(memory).map_err(|_| Status::IoError)?;
        let Header { kind, sector } = Header::decode(raw).ok_or(Status::Unsupported)?;
        let durability = self.shared.write_cache.durability();
        let limits = Limits { capacity: self.shared.capacity.bytes(), ..self.limits };
        let op = match kind {
            Kind::In => {
                let op = limits.read(sector, data_in.len())?;
                data_in.map(memory, segments).map_err(|_| Status::IoError)?;
                op
            }
            Kind::Out => {
                let op = limits.write(sector, data_out.len(), durability)?;
                data_out.map(memory, segments).map_err(|_| Status::IoError)?;
                op
            }
            Kind::Flush => Operation::Flush,
            Kind::GetId => {
                data_in.write(memory, &self.id).map_err(|_| Status::IoError)?;
                return Ok(Ask::Answered { filled: ID_BYTES as u64 });
            }
            Kind::Discard => limits.discard(read_range(data_out, memory)?, durability)?,
            Kind::WriteZeroes => limits.write_zeroes(read_range(data_out, memory)?, durability)?,
        };
        Ok(Ask::Disk(op))
    }
}

/// Splits the status byte, the last writable one, from the data before it; `None` if there is none
/// in guest memory.
fn split_status<'a>(chain: &'a Chain, memory: &GuestMemory) -> Option<(Span<'a>, Pending)> {
    let (data, status) = chain.writable_but_last()?;
    let pending = Pending { status, data_len: data.len(), filled: 0 };
    slice(memory, status, 1).map(|_| (data, pending))
}

/// Reads the one range of a discard or zeroing: `max_discard_seg` and `max_write_zeroes_seg` are 1.
fn read_range(data: Span<'_>, memory: &GuestMemory) -> Result<[u8; RANGE_BYTES], Status> {
    if data.len() != RANGE_BYTES as u64 {
        return Err(Status::IoError);
    }
    data.read_16(memory).map_err(|_| Status::IoError)
}
