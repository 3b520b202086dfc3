//! The device-readable part of command requests in guest memory (Virtio 1.2 §5.6.6.1).

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::address::LunField;
use crate::GuestMap;
use crate::scsi::{Cdb, DataOut};
use crate::virtqueue::Span;

/// Default of `cdb_size`, in bytes.
pub(super) const CDB_BYTES: u32 = 32;
/// Length of the header before the CDB, in bytes.
pub(super) const HEADER_BYTES: u64 = size_of::<RequestBytes>() as u64;

/// `struct virtio_scsi_req_cmd` up to the CDB.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
struct RequestBytes {
    lun: [u8; 8],
    id: U64,
    /// Every attribute is treated as SIMPLE.
    task_attr: u8,
    prio: u8,
    crn: u8,
}

/// The header of a command request.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommandHeader {
    /// `None` if it addresses no target.
    pub(super) to: Option<LunField>,
    /// The driver's identifier of the command.
    pub(super) id: u64,
    pub(super) cdb: Cdb,
}

impl CommandHeader {
    /// Reads the header of `19 + cdb_size` bytes at the start of `readable`; `None` if it is not in
    /// guest memory.
    pub(super) fn read(readable: &Span<'_>, map: &GuestMap, cdb_size: u32) -> Option<Self> {
        let mut bytes = [0; size_of::<RequestBytes>() + Cdb::MAX_BYTES];
        let cdb_len = usize::try_from(cdb_size).map_or(Cdb::MAX_BYTES, |n| n.min(Cdb::MAX_BYTES));
        let bytes = bytes.get_mut(..size_of::<RequestBytes>() + cdb_len)?;
        readable.read(map, bytes).ok()?;
        let (request, cdb) = RequestBytes::ref_from_prefix(bytes).ok()?;
        let to = LunField::decode(request.lun);
        Some(Self { to, id: request.id.get(), cdb: Cdb::new(cdb) })
    }
}

/// The data-out buffer of a command.
pub(super) struct DataOutSpan<'a> {
    pub(super) span: Span<'a>,
    pub(super) map: &'a GuestMap,
}

impl DataOut for DataOutSpan<'_> {
    fn len(&self) -> u64 {
        self.span.len()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        let tail = self.span.split_at(at).map(|(_, tail)| tail);
        tail.is_some_and(|tail| tail.read(self.map, into).is_ok())
    }
}
