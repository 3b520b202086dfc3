//! Requests and responses as they stand in guest memory (Virtio 1.2 §5.6.6.1).

use ::block::Segments;
use vm_memory::GuestAddress;

use crate::scsi::{Cdb, DataOut, Target};
use crate::virtio::{GuestMap, Span};
use crate::virtqueue::Buffer;

const HEADER: usize = 19;
/// Sizes of command and sense data until the driver changes them.
pub(super) const CDB_BYTES: u32 = 32;
pub(super) const SENSE_BYTES: u32 = 96;
/// Bytes before the command, and before the sense data.
pub(super) const HEADER_BYTES: u64 = HEADER as u64;
pub(super) const RESPONSE_BYTES: u64 = 12;
/// What is written of a response at most: all of it unless the driver asks for more than the usual sense data.
const WHOLE_BYTES: usize = 12 + SENSE_BYTES as usize;

/// Values of `response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Response {
    /// Done: the status tells how it ended.
    Ok = 0,
    /// The buffers are too small.
    Overrun = 1,
    /// By ABORT TASK and the like.
    Aborted = 2,
    /// There is no such target.
    BadTarget = 3,
    /// By a reset.
    Reset = 4,
    /// The request cannot be carried out.
    Failure = 9,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addressee {
    pub(super) target: u8,
    /// `None` for a number that no unit can have.
    pub(super) lun: Option<u16>,
}

impl Addressee {
    /// Decodes `lun`; `None` for anything but a target and a number of a single level.
    pub(super) fn decode(lun: [u8; 8]) -> Option<Self> {
        let [1, target, high, low, rest @ ..] = lun else { return None };
        let single_level = rest == [0; 4];
        let lun = Target::decode_lun([high, low]).filter(|_| single_level);
        Some(Self { target, lun })
    }
}

/// The header of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// `None` if it names no target.
    pub(super) to: Option<Addressee>,
    /// The driver's name for the task.
    pub(super) id: u64,
    pub(super) cdb: Cdb,
}

impl Header {
    /// Reads the header from the start of `readable`, where it is `19 + cdb_size` bytes long. Task attributes are all
    /// mapped to SIMPLE (§5.6.6.1). `None` if it does not lie in guest memory.
    pub(super) fn read(readable: &Span<'_>, map: &GuestMap, cdb_size: u32) -> Option<Self> {
        let mut bytes = [0; HEADER + Cdb::MOST];
        let cdb_len = usize::try_from(cdb_size).map_or(Cdb::MOST, |size| size.min(Cdb::MOST));
        let len = bytes.len() - Cdb::MOST + cdb_len;
        readable.read(map, bytes.get_mut(..len)?).ok()?;
        let (lun, rest) = bytes.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let cdb = Cdb::new(rest.get(3..3 + cdb_len)?);
        Some(Self { to: Addressee::decode(*lun), id: u64::from_le_bytes(*id), cdb })
    }
}

/// Where a response goes: known to lie in guest memory.
#[derive(Debug)]
pub(super) enum Place {
    /// In one piece, with room for this much sense data.
    One(GuestAddress, u32),
    Several(Box<[Buffer]>, u32),
}

impl Place {
    /// The first `12 + sense_size` bytes of a chain's writable part, which has them. `None` if they are not in guest memory.
    pub(super) fn of(span: &Span<'_>, map: &GuestMap, sense_size: u32) -> Option<Self> {
        if let Some(first) = span.buffers().next()
            && u64::from(first.len) == span.len()
            && map.segment(first.addr, first.len).is_some()
        {
            return Some(Self::One(first.addr, sense_size));
        }
        span.map(map, &mut Segments::new()).ok()?;
        Some(Self::Several(span.buffers().collect(), sense_size))
    }

    fn sense_size(&self) -> u32 {
        match self {
            Self::One(_, sense_size) | Self::Several(_, sense_size) => *sense_size,
        }
    }

    /// Writes a response and returns its length, with `data` bytes of data behind it. Sense data is cut to its room. The
    /// rest of the room is zeroed where data follows, so that all bytes up to the data's end are written (§2.7.8.2).
    pub(super) fn answer(&self, map: &GuestMap, outcome: &Outcome<'_>, data: u64) -> u32 {
        let sense_size = self.sense_size();
        let room =
            usize::try_from(sense_size).map_or(WHOLE_BYTES - 12, |n| n.min(WHOLE_BYTES - 12));
        let sense = outcome.sense.get(..outcome.sense.len().min(room)).unwrap_or_default();
        let mut whole = [0; WHOLE_BYTES];
        let sense_len = u32::try_from(sense.len()).unwrap_or(0);
        let (head, tail) = whole.split_at_mut(12);
        let residual = u32::try_from(outcome.residual).unwrap_or(u32::MAX).to_le_bytes();
        let fields =
            [sense_len.to_le_bytes(), residual, [0, 0, outcome.status, outcome.response as u8]];
        for (place, byte) in head.iter_mut().zip(fields.as_flattened()) {
            *place = *byte;
        }
        for (place, byte) in tail.iter_mut().zip(sense) {
            *place = *byte;
        }
        let filled = data > 0 && u64::from(sense_size) <= tail.len() as u64;
        let len = 12 + if filled { room } else { sense.len() };
        let bytes = whole.get(..len).unwrap_or_default();
        // It was seen to lie in guest memory.
        match self {
            Self::One(addr, sense_size) => {
                let len = u32::try_from(RESPONSE_BYTES).unwrap_or(12).saturating_add(*sense_size);
                let _ = Span::new(&[Buffer { addr: *addr, len }]).write(map, bytes);
            }
            Self::Several(buffers, _) => {
                let _ = Span::new(buffers).write(map, bytes);
            }
        }
        let written = len as u64 + if filled { data } else { 0 };
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

/// What a response says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome<'a> {
    pub(super) response: Response,
    pub(super) status: u8,
    pub(super) sense: &'a [u8],
    /// Bytes of the data buffers that were not used.
    pub(super) residual: u64,
}

/// The data-out buffer of a command.
pub(super) struct Out<'a> {
    pub(super) span: Span<'a>,
    pub(super) map: &'a GuestMap,
}

impl DataOut for Out<'_> {
    fn len(&self) -> u64 {
        self.span.len()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        let tail = self.span.split_at(at).map(|(_, tail)| tail);
        tail.is_some_and(|tail| tail.read(self.map, into).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_targets_and_single_levels_are_addressed() {
        let decode = Addressee::decode;
        let to = |target, lun| Some(Addressee { target, lun });
        assert_eq!(decode([1, 3, 0, 5, 0, 0, 0, 0]), to(3, Some(5)));
        assert_eq!(decode([1, 255, 0x7f, 0xff, 0, 0, 0, 0]), to(255, Some(0x3fff)));
        assert_eq!(decode([1, 0, 0, 0, 0, 0, 0, 1]), to(0, None), "a second level");
        assert_eq!(decode([1, 0, 1, 0, 0, 0, 0, 0]), to(0, None), "another bus");
        assert_eq!(decode([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode([0; 8]), None);
    }
}
