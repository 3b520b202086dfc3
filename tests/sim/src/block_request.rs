//! virtio-blk requests, and what the driver expects of them.

use std::fmt;

use driver::kind;

use super::oracle::{OpId, PendingRead, Time};
use super::queue_driver::{Answer, Framed};

/// A request as the oracle knows it.
pub(super) enum Expectation {
    Read { first: usize, read: PendingRead },
    Change { op: OpId, offered: Time },
    Flush { offered: Time },
    Id,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { first, .. } => write!(f, "a read of sector {first}"),
            Self::Change { op, offered } => write!(f, "operation {op} of time {offered}"),
            Self::Flush { offered } => write!(f, "a flush of time {offered}"),
            Self::Id => f.write_str("a read of the serial number"),
        }
    }
}

/// A request. Sector and number of sectors are for the trace.
pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) sector: usize,
    pub(super) sectors: usize,
    /// Device-readable data.
    data_out: Vec<u8>,
    /// Bytes of device-writable data.
    data_in: usize,
}

impl Request {
    /// Its buffers.
    pub(super) fn framed(self) -> Framed {
        let mut header = vec![0; 16];
        header[..4].copy_from_slice(&self.kind.to_le_bytes());
        header[8..].copy_from_slice(&(self.sector as u64).to_le_bytes());
        let Self { data_out, data_in, .. } = self;
        Framed { header, data_out, data_in, answer: Answer::BehindData(1) }
    }
}

/// A DISCARD or WRITE_ZEROES.
pub(super) fn range(kind: u32, first: usize, count: usize, flags: u32) -> Request {
    let mut data_out = (first as u64).to_le_bytes().to_vec();
    data_out.extend(u32::try_from(count).unwrap().to_le_bytes());
    data_out.extend(flags.to_le_bytes());
    // The header's sector is unused.
    Request { kind, sector: first, sectors: count, data_out, data_in: 0 }
}

/// A request without device-readable data.
pub(super) fn bare(kind: u32, sector: usize, data_in: usize) -> Request {
    Request { kind, sector, sectors: data_in / 512, data_out: Vec::new(), data_in }
}

/// A write.
pub(super) fn write(sector: usize, data_out: Vec<u8>) -> Request {
    Request { kind: kind::OUT, sector, sectors: data_out.len() / 512, data_out, data_in: 0 }
}
