//! Command descriptor blocks (SPC-4 §4.2): copied once, never changed.

use super::bytes::{be16, be32, be64, byte};
use super::sense::Sense;

/// Operation codes that more than the table of commands refers to.
pub(super) mod opcode {
    pub(in crate::scsi) const REQUEST_SENSE: u8 = 0x03;
    pub(in crate::scsi) const INQUIRY: u8 = 0x12;
    pub(in crate::scsi) const UNMAP: u8 = 0x42;
    pub(in crate::scsi) const WRITE_SAME_16: u8 = 0x93;
    pub(in crate::scsi) const REPORT_LUNS: u8 = 0xa0;
}

/// A command descriptor block. Bytes that the initiator did not send are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; Self::MAX_BYTES],
    sent: usize,
}

/// The lengths of the block commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CdbForm {
    Six,
    Ten,
    Twelve,
    Sixteen,
}

impl Cdb {
    /// Maximum length in bytes, more than any command here has.
    pub const MAX_BYTES: usize = 32;

    /// The command at the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut copy = [0; Self::MAX_BYTES];
        for (to, from) in copy.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: copy, sent: bytes.len().min(Self::MAX_BYTES) }
    }

    /// The operation code.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.byte(0)
    }

    /// Number of bytes that the initiator sent.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        byte(&self.bytes, at)
    }

    pub(super) fn bit(&self, at: usize, bit: u8) -> bool {
        self.byte(at) >> bit & 1 == 1
    }

    pub(super) fn be16(&self, at: usize) -> u16 {
        be16(&self.bytes, at)
    }

    pub(super) fn be32(&self, at: usize) -> u32 {
        be32(&self.bytes, at)
    }

    pub(super) fn be64(&self, at: usize) -> u64 {
        be64(&self.bytes, at)
    }

    /// The form, from the group of the operation code (SPC-4 §4.2.5.1).
    pub(super) fn form(&self) -> CdbForm {
        match self.opcode() >> 5 {
            0 => CdbForm::Six,
            4 => CdbForm::Sixteen,
            5 => CdbForm::Twelve,
            _ => CdbForm::Ten,
        }
    }

    /// Length of the form in bytes. The last byte is the CONTROL byte.
    pub(super) fn len(&self) -> usize {
        match self.form() {
            CdbForm::Six => 6,
            CdbForm::Ten => 10,
            CdbForm::Twelve => 12,
            CdbForm::Sixteen => 16,
        }
    }

    /// INVALID FIELD IN CDB for the field that starts at `byte`.
    pub(super) fn invalid(&self, byte: u16) -> Sense {
        Sense::invalid_field_in_cdb(byte, None)
    }

    /// INVALID FIELD IN CDB for the field whose highest bit is `bit` of `byte`.
    pub(super) fn invalid_bit(&self, byte: u16, bit: u8) -> Sense {
        Sense::invalid_field_in_cdb(byte, Some(bit))
    }
}
