//! Sense data: what a command's failure was, exactly (SPC-4 §4.5).

use std::io;

use ::block::Operation;

use super::bytes::put;

/// Sense keys (SPC-4 table 48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing to tell.
    NoSense = 0x0,
    /// The unit cannot be used now.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// The command is wrong.
    IllegalRequest = 0x5,
    /// The unit failed.
    HardwareError = 0x4,
    /// Something happened to the unit since the last command.
    UnitAttention = 0x6,
    /// The blocks may not be changed, or cannot for want of space.
    DataProtect = 0x7,
    /// The data is not what it was said to be.
    Miscompare = 0xe,
}

/// What is told beyond the key and the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    None,
    /// A wrong field (SPC-4 §4.5.2.4.2).
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
    /// No failure.
    pub const NONE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    pub(super) const STOPPED: Self = Self::new(Key::NotReady, 0x04, 0x02);
    pub(super) const UNRECOVERED_READ_ERROR: Self = Self::new(Key::MediumError, 0x11, 0x00);
    pub(super) const WRITE_ERROR: Self = Self::new(Key::MediumError, 0x0c, 0x00);
    pub(super) const PARAMETER_LIST_LENGTH_ERROR: Self = Self::new(Key::IllegalRequest, 0x1a, 0x00);
    pub(super) const INVALID_COMMAND: Self = Self::new(Key::IllegalRequest, 0x20, 0x00);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const NO_SUCH_UNIT: Self = Self::new(Key::IllegalRequest, 0x25, 0x00);
    /// INTERNAL TARGET FAILURE: a fault of ours.
    pub const TARGET_FAILURE: Self = Self::new(Key::HardwareError, 0x44, 0x00);
    pub(super) const INVALID_RELEASE: Self = Self::new(Key::IllegalRequest, 0x26, 0x04);
    pub(super) const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x00);
    /// SPACE ALLOCATION FAILED WRITE PROTECT: the store behind a thin disk is full.
    pub(super) const NO_SPACE: Self = Self::new(Key::DataProtect, 0x27, 0x07);
    pub(super) const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);

    pub(super) const fn new(key: Key, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier, detail: Detail::None }
    }

    /// INVALID FIELD IN CDB. `bit` is the highest of the field, where it does not fill its byte.
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

    /// Why the engine failed `op`: the one mapping of errors to sense data.
    pub(super) fn of(op: Operation, error: &io::Error) -> Self {
        let reads = matches!(op, Operation::Read { .. });
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) if !reads => Self::NO_SPACE,
            Some(libc::EROFS | libc::EPERM | libc::EACCES) if !reads => Self::WRITE_PROTECTED,
            _ if reads => Self::UNRECOVERED_READ_ERROR,
            _ => Self::WRITE_ERROR,
        }
    }

    /// Its key, additional sense code and qualifier.
    #[must_use]
    pub fn triple(&self) -> (Key, u8, u8) {
        (self.key, self.code, self.qualifier)
    }

    /// The sense data, in descriptor format or in fixed format.
    #[must_use]
    pub fn encode(&self, descriptor_format: bool) -> Vec<u8> {
        if descriptor_format { self.descriptor_format() } else { self.fixed_format() }
    }

    /// SPC-4 §4.5.3.
    fn fixed_format(&self) -> Vec<u8> {
        let mut data = vec![0; 18];
        put(&mut data, 0, &[0x70, 0, self.key as u8]);
        put(&mut data, 7, &[10]);
        put(&mut data, 12, &[self.code, self.qualifier]);
        match self.detail {
            Detail::None => {}
            Detail::Field { .. } => put(&mut data, 15, &self.field_pointer()),
            // VALID stays clear where the field is too narrow (§4.5.3).
            Detail::Information(information) => {
                if let Ok(information) = u32::try_from(information) {
                    put(&mut data, 0, &[0xf0]);
                    put(&mut data, 3, &information.to_be_bytes());
                }
            }
        }
        data
    }

    /// SPC-4 §4.5.2.
    fn descriptor_format(&self) -> Vec<u8> {
        let mut data = vec![0x72, self.key as u8, self.code, self.qualifier, 0, 0, 0, 0];
        match self.detail {
            Detail::None => {}
            Detail::Field { .. } => {
                data.extend([0x02, 0x06, 0, 0]);
                data.extend(self.field_pointer());
                data.push(0);
            }
            Detail::Information(information) => {
                data.extend([0x00, 0x0a, 0x80, 0]);
                data.extend(information.to_be_bytes());
            }
        }
        let additional = u8::try_from(data.len() - 8).unwrap_or(0);
        put(&mut data, 7, &[additional]);
        data
    }

    /// The sense key specific bytes of a wrong field.
    fn field_pointer(&self) -> [u8; 3] {
        let Detail::Field { in_cdb, byte, bit } = self.detail else { return [0; 3] };
        let [high, low] = byte.to_be_bytes();
        let bit = bit.map_or(0, |bit| 0x08 | bit & 7);
        [0x80 | u8::from(in_cdb) << 6 | bit, high, low]
    }
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
    fn descriptor_format_has_a_descriptor_for_each_detail() {
        let sense = Sense::invalid_field_in_cdb(2, None).encode(true);
        assert_eq!(sense, [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 0, 2, 0]);
        let sense = Sense::miscompare(0x1_0000_0002).encode(true);
        assert_eq!(sense.len(), 8 + 12);
        assert_eq!(sense.get(7..), Some(&[12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2][..]));
        assert_eq!(Sense::NONE.encode(true), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn information_is_valid_only_where_it_fits() {
        let fits = Sense::miscompare(0xffff_ffff).encode(false);
        assert_eq!(fits.get(..7), Some(&[0xf0, 0, 0xe, 0xff, 0xff, 0xff, 0xff][..]));
        let does_not = Sense::miscompare(1 << 32).encode(false);
        assert_eq!(does_not.get(..7), Some(&[0x70, 0, 0xe, 0, 0, 0, 0][..]));
    }

    #[test]
    fn no_error_of_the_host_is_good() {
        use ::block::{ByteOffset, Durability};
        let read = Operation::Read { at: ByteOffset(0) };
        let write = Operation::Write { at: ByteOffset(0), durability: Durability::Volatile };
        let told = |op, errno| Sense::of(op, &io::Error::from_raw_os_error(errno)).triple();
        for errno in 1..134 {
            let read = told(read, errno);
            assert_eq!(read, (Key::MediumError, 0x11, 0));
            let expected = match errno {
                libc::ENOSPC | libc::EDQUOT => (Key::DataProtect, 0x27, 7),
                libc::EROFS | libc::EPERM | libc::EACCES => (Key::DataProtect, 0x27, 0),
                _ => (Key::MediumError, 0x0c, 0),
            };
            assert_eq!(told(write, errno), expected, "{errno}");
            assert_eq!(told(Operation::Flush, errno), expected, "{errno}");
        }
        let short = io::Error::new(io::ErrorKind::WriteZero, "short");
        assert_eq!(Sense::of(write, &short), Sense::WRITE_ERROR);
    }
}
