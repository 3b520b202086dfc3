//! Sense data: the exact reason of a failure (SPC-4 §4.5).

use std::io;

use ::block::Operation;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bytes::len8;

/// Sense keys (SPC-4 table 48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// NO SENSE.
    NoSense = 0x0,
    /// NOT READY: the unit is stopped.
    NotReady = 0x2,
    /// MEDIUM ERROR: the host failed the operation.
    MediumError = 0x3,
    /// HARDWARE ERROR: a bug of the target.
    HardwareError = 0x4,
    /// ILLEGAL REQUEST: the command is invalid.
    IllegalRequest = 0x5,
    /// UNIT ATTENTION: the unit changed since the last command.
    UnitAttention = 0x6,
    /// DATA PROTECT: the medium is read-only or out of space.
    DataProtect = 0x7,
    /// MISCOMPARE: the data differs from the medium.
    Miscompare = 0xe,
}

/// Information beyond key and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    None,
    /// Field pointer sense key specific data (SPC-4 §4.5.2.4.2).
    Field {
        in_cdb: bool,
        byte: u16,
        bit: Option<u8>,
    },
    /// The INFORMATION field.
    Information(u64),
}

/// The sense data of one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    key: Key,
    code: u8,
    qualifier: u8,
    detail: Detail,
}

impl Sense {
    /// NO ADDITIONAL SENSE INFORMATION.
    pub const NONE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    /// LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED.
    pub(super) const STOPPED: Self = Self::new(Key::NotReady, 0x04, 0x02);
    pub(super) const UNRECOVERED_READ_ERROR: Self = Self::new(Key::MediumError, 0x11, 0x00);
    pub(super) const WRITE_ERROR: Self = Self::new(Key::MediumError, 0x0c, 0x00);
    pub(super) const PARAMETER_LIST_LENGTH_ERROR: Self = Self::new(Key::IllegalRequest, 0x1a, 0x00);
    pub(super) const INVALID_COMMAND: Self = Self::new(Key::IllegalRequest, 0x20, 0x00);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const NO_SUCH_UNIT: Self = Self::new(Key::IllegalRequest, 0x25, 0x00);
    /// INTERNAL TARGET FAILURE: a bug of the target.
    pub const TARGET_FAILURE: Self = Self::new(Key::HardwareError, 0x44, 0x00);
    pub(super) const INVALID_RELEASE: Self = Self::new(Key::IllegalRequest, 0x26, 0x04);
    pub(super) const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x00);
    /// SPACE ALLOCATION FAILED WRITE PROTECT: the backing store is full.
    pub(super) const NO_SPACE: Self = Self::new(Key::DataProtect, 0x27, 0x07);
    pub(super) const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);

    pub(super) const fn new(key: Key, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier, detail: Detail::None }
    }

    /// INVALID FIELD IN CDB. `bit` is the highest bit of a field shorter than its byte.
    pub(super) const fn invalid_field_in_cdb(byte: u16, bit: Option<u8>) -> Self {
        let detail = Detail::Field { in_cdb: true, byte, bit };
        Self { key: Key::IllegalRequest, code: 0x24, qualifier: 0x00, detail }
    }

    /// INVALID FIELD IN PARAMETER LIST.
    pub(super) fn invalid_parameter(byte: usize, bit: Option<u8>) -> Self {
        let byte = u16::try_from(byte).unwrap_or(u16::MAX);
        let detail = Detail::Field { in_cdb: false, byte, bit };
        Self { key: Key::IllegalRequest, code: 0x26, qualifier: 0x00, detail }
    }

    /// MISCOMPARE DURING VERIFY OPERATION, `offset` bytes into the data-out buffer.
    pub(super) const fn miscompare(offset: u64) -> Self {
        let detail = Detail::Information(offset);
        Self { key: Key::Miscompare, code: 0x1d, qualifier: 0x00, detail }
    }

    /// The sense data for an error of `op`: the only mapping of host errors.
    pub(super) fn of(op: Operation, error: &io::Error) -> Self {
        let reads = matches!(op, Operation::Read { .. });
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) if !reads => Self::NO_SPACE,
            Some(libc::EROFS | libc::EPERM | libc::EACCES) if !reads => Self::WRITE_PROTECTED,
            _ if reads => Self::UNRECOVERED_READ_ERROR,
            _ => Self::WRITE_ERROR,
        }
    }

    /// Sense key, additional sense code and qualifier.
    #[must_use]
    pub fn triple(&self) -> (Key, u8, u8) {
        (self.key, self.code, self.qualifier)
    }

    /// Encodes the sense data in descriptor format or in fixed format.
    #[must_use]
    pub fn encode(&self, descriptor_format: bool) -> Vec<u8> {
        if descriptor_format { self.descriptor_format() } else { self.fixed_format() }
    }

    /// SPC-4 §4.5.3.
    fn fixed_format(&self) -> Vec<u8> {
        /// VALID of the INFORMATION field.
        const VALID: u8 = 0x80;
        let mut data = FixedSense {
            response_code: 0x70,
            sense_key: self.key as u8,
            additional_sense_length: len8(size_of::<FixedSense>() - 8),
            additional_sense_code: self.code,
            additional_sense_code_qualifier: self.qualifier,
            ..FromZeros::new_zeroed()
        };
        match self.detail {
            Detail::None => {}
            Detail::Field { .. } => data.field_pointer = self.field_pointer(),
            // VALID stays clear if the value exceeds the field (§4.5.3).
            Detail::Information(information) => {
                if let Ok(information) = u32::try_from(information) {
                    data.response_code |= VALID;
                    data.information = information.into();
                }
            }
        }
        data.as_bytes().to_vec()
    }

    /// SPC-4 §4.5.2.
    fn descriptor_format(&self) -> Vec<u8> {
        let descriptor = match self.detail {
            Detail::None => Vec::new(),
            Detail::Field { .. } => {
                let descriptor = FieldPointerDescriptor {
                    descriptor_type: 0x02,
                    additional_length: 6,
                    reserved: [0; 2],
                    field_pointer: self.field_pointer(),
                    reserved_7: 0,
                };
                descriptor.as_bytes().to_vec()
            }
            Detail::Information(information) => {
                let descriptor = InformationDescriptor {
                    descriptor_type: 0x00,
                    additional_length: 10,
                    valid: 0x80,
                    reserved: 0,
                    information: information.into(),
                };
                descriptor.as_bytes().to_vec()
            }
        };
        let header = DescriptorSense {
            response_code: 0x72,
            sense_key: self.key as u8,
            additional_sense_code: self.code,
            additional_sense_code_qualifier: self.qualifier,
            reserved: [0; 3],
            additional_sense_length: len8(descriptor.len()),
        };
        [header.as_bytes(), &descriptor].concat()
    }

    fn field_pointer(&self) -> FieldPointer {
        const SKSV: u8 = 0x80;
        const BPV: u8 = 0x08;
        let Detail::Field { in_cdb, byte, bit } = self.detail else {
            return FromZeros::new_zeroed();
        };
        let bit = bit.map_or(0, |bit| BPV | bit & 7);
        FieldPointer { flags: SKSV | u8::from(in_cdb) << 6 | bit, field: byte.into() }
    }
}

/// Fixed format sense data (SPC-4 §4.5.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct FixedSense {
    /// VALID and RESPONSE CODE.
    response_code: u8,
    obsolete: u8,
    sense_key: u8,
    information: U32,
    additional_sense_length: u8,
    command_specific_information: U32,
    additional_sense_code: u8,
    additional_sense_code_qualifier: u8,
    field_replaceable_unit_code: u8,
    field_pointer: FieldPointer,
}

/// The header of descriptor format sense data (SPC-4 §4.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct DescriptorSense {
    response_code: u8,
    sense_key: u8,
    additional_sense_code: u8,
    additional_sense_code_qualifier: u8,
    reserved: [u8; 3],
    additional_sense_length: u8,
}

/// Field pointer sense key specific data (SPC-4 §4.5.2.4.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct FieldPointer {
    /// SKSV, C/D, BPV and BIT POINTER.
    flags: u8,
    field: U16,
}

/// The sense key specific sense data descriptor (SPC-4 §4.5.2.4.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct FieldPointerDescriptor {
    descriptor_type: u8,
    additional_length: u8,
    reserved: [u8; 2],
    field_pointer: FieldPointer,
    reserved_7: u8,
}

/// The information sense data descriptor (SPC-4 §4.5.2.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct InformationDescriptor {
    descriptor_type: u8,
    additional_length: u8,
    valid: u8,
    reserved: u8,
    information: U64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_points_to_the_field() {
        let sense = Sense::invalid_field_in_cdb(1, Some(4)).encode(false);
        let expected = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcc, 0, 1];
        assert_eq!(sense, expected);
        let sense = Sense::invalid_parameter(0x102, None).encode(false);
        assert_eq!(sense.get(12..), Some(&[0x26, 0, 0, 0x80, 1, 2][..]));
    }

    #[test]
    fn descriptor_format_has_a_descriptor_for_the_detail() {
        let sense = Sense::invalid_field_in_cdb(2, None).encode(true);
        assert_eq!(sense, [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 0, 2, 0]);
        let sense = Sense::miscompare(0x1_0000_0002).encode(true);
        assert_eq!(sense.len(), 8 + 12);
        assert_eq!(sense.get(7..), Some(&[12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2][..]));
        assert_eq!(Sense::NONE.encode(true), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn information_is_valid_only_if_it_fits() {
        let fits = Sense::miscompare(0xffff_ffff).encode(false);
        assert_eq!(fits.get(..7), Some(&[0xf0, 0, 0xe, 0xff, 0xff, 0xff, 0xff][..]));
        let does_not = Sense::miscompare(1 << 32).encode(false);
        assert_eq!(does_not.get(..7), Some(&[0x70, 0, 0xe, 0, 0, 0, 0][..]));
    }

    #[test]
    fn every_host_error_maps_to_sense_data() {
        use ::block::{ByteOffset, Durability};
        let read = Operation::Read { at: ByteOffset(0) };
        let write = Operation::Write { at: ByteOffset(0), durability: Durability::Volatile };
        let triple = |op, errno| Sense::of(op, &io::Error::from_raw_os_error(errno)).triple();
        for errno in 1..134 {
            let read = triple(read, errno);
            assert_eq!(read, (Key::MediumError, 0x11, 0));
            let expected = match errno {
                libc::ENOSPC | libc::EDQUOT => (Key::DataProtect, 0x27, 7),
                libc::EROFS | libc::EPERM | libc::EACCES => (Key::DataProtect, 0x27, 0),
                _ => (Key::MediumError, 0x0c, 0),
            };
            assert_eq!(triple(write, errno), expected, "{errno}");
            assert_eq!(triple(Operation::Flush, errno), expected, "{errno}");
        }
        let short = io::Error::new(io::ErrorKind::WriteZero, "short");
        assert_eq!(Sense::of(write, &short), Sense::WRITE_ERROR);
    }
}
