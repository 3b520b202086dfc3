//! The device-writable part of command requests in guest memory (Virtio 1.2 §5.6.6.1).

use ::block::Segments;
use vm_memory::GuestAddress;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::GuestMap;
use crate::virtqueue::{Buffer, Span};

/// Default of `sense_size`, in bytes.
pub(super) const SENSE_BYTES: u32 = 96;
/// Length of the response before the sense data, in bytes.
pub(super) const RESPONSE_BYTES: u64 = HEADER as u64;

const HEADER: usize = size_of::<ResponseBytes>();
/// Maximum length of sense data that is written, in bytes: the default `sense_size`.
const MAX_SENSE: usize = SENSE_BYTES as usize;

/// `struct virtio_scsi_req_cmd` from `sense_len` to the sense data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ResponseBytes {
    sense_len: U32,
    residual: U32,
    status_qualifier: U16,
    status: u8,
    response: u8,
}

/// Values of `response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Response {
    /// VIRTIO_SCSI_S_OK: the command completed with a status.
    Ok = 0,
    /// VIRTIO_SCSI_S_OVERRUN: the data buffers are too small.
    Overrun = 1,
    /// VIRTIO_SCSI_S_ABORTED: aborted by a task management function.
    Aborted = 2,
    /// VIRTIO_SCSI_S_BAD_TARGET: the target does not exist.
    BadTarget = 3,
    /// VIRTIO_SCSI_S_RESET: aborted by a reset.
    Reset = 4,
    /// VIRTIO_SCSI_S_FAILURE: the request cannot be executed.
    Failure = 9,
}

/// The content of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseFields<'a> {
    pub(super) response: Response,
    /// SCSI status code.
    pub(super) status: u8,
    pub(super) sense: &'a [u8],
    /// Unused bytes of the data buffers.
    pub(super) residual: u64,
}

/// The buffer of a response, checked to be guest memory.
#[derive(Debug)]
pub(super) struct ResponseBuffer {
    extent: ResponseExtent,
    sense_size: u32,
}

#[derive(Debug)]
enum ResponseExtent {
    /// The whole response from this address.
    Contiguous(GuestAddress),
    Scattered(Box<[Buffer]>),
}

impl ResponseBuffer {
    /// The buffer `span` of `12 + sense_size` bytes; `None` if it is not in guest memory.
    pub(super) fn new(span: &Span<'_>, map: &GuestMap, sense_size: u32) -> Option<Self> {
        if let Some(first) = span.buffers().next()
            && u64::from(first.len) == span.len()
            && map.segment(first.addr, first.len).is_some()
        {
            return Some(Self { extent: ResponseExtent::Contiguous(first.addr), sense_size });
        }
        span.map(map, &mut Segments::new()).ok()?;
        Some(Self { extent: ResponseExtent::Scattered(span.buffers().collect()), sense_size })
    }

    /// Writes a response with `data` bytes of data behind it and returns the used length. Sense
    /// data is truncated to the buffer. With data the rest of the buffer is zeroed, so that all
    /// bytes up to the end of the data are written (§2.7.8.2).
    pub(super) fn write(&self, map: &GuestMap, fields: &ResponseFields<'_>, data: u64) -> u32 {
        let room = usize::try_from(self.sense_size).map_or(MAX_SENSE, |n| n.min(MAX_SENSE));
        let sense = fields.sense.get(..fields.sense.len().min(room)).unwrap_or_default();
        let header = ResponseBytes {
            sense_len: u32::try_from(sense.len()).unwrap_or(0).into(),
            residual: u32::try_from(fields.residual).unwrap_or(u32::MAX).into(),
            status_qualifier: 0.into(),
            status: fields.status,
            response: fields.response as u8,
        };
        let mut bytes = [0; HEADER + MAX_SENSE];
        let (head, tail) = bytes.split_at_mut(HEADER);
        head.copy_from_slice(header.as_bytes());
        for (to, from) in tail.iter_mut().zip(sense) {
            *to = *from;
        }
        let is_padded = data > 0 && self.sense_size <= SENSE_BYTES;
        let len = HEADER + if is_padded { room } else { sense.len() };
        self.write_bytes(map, bytes.get(..len).unwrap_or_default());
        let written = len as u64 + if is_padded { data } else { 0 };
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn write_bytes(&self, map: &GuestMap, bytes: &[u8]) {
        // Succeeds: `new` has checked the buffer.
        let _ = match &self.extent {
            ResponseExtent::Contiguous(addr) => {
                let len = u32::try_from(HEADER).unwrap_or(12).saturating_add(self.sense_size);
                Span::new(&[Buffer { addr: *addr, len }]).write(map, bytes)
            }
            ResponseExtent::Scattered(buffers) => Span::new(buffers).write(map, bytes),
        };
    }
}
