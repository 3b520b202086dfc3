//! A command descriptor block (SPC-4 §4.2): read once, never changed.

use super::bytes::{be16, be32, be64, byte};
use super::sense::Sense;

/// The bytes of a command; those that the initiator did not send are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; Self::MAX_BYTES],
    sent: usize,
}

/// The forms in which the commands that address blocks exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Six,
    Ten,
    Twelve,
    Sixteen,
}

impl Cdb {
    /// More than any command here has, in bytes.
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

    /// What the command is.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.byte(0)
    }

    /// Number of bytes the initiator sent.
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

    /// The group of the operation code tells the form (SPC-4 §4.2.5.1).
    pub(super) fn form(&self) -> Form {
        match self.opcode() >> 5 {
            0 => Form::Six,
            4 => Form::Sixteen,
            5 => Form::Twelve,
            _ => Form::Ten,
        }
    }

    /// Its length in bytes by its operation code, and where the control byte is: the last.
    pub(super) fn len(&self) -> usize {
        match self.form() {
            Form::Six => 6,
            Form::Ten => 10,
            Form::Twelve => 12,
            Form::Sixteen => 16,
        }
    }

    /// The field that starts at `byte` has a value that cannot be had.
    pub(super) fn wrong(&self, byte: u16) -> Sense {
        Sense::invalid_field_in_cdb(byte, None)
    }

    /// The field whose highest bit is `bit` of `byte` has a value that cannot be had.
    pub(super) fn wrong_bit(&self, byte: u16, bit: u8) -> Sense {
        Sense::invalid_field_in_cdb(byte, Some(bit))
    }
}
