//! Contents of sectors: each identifies its write and its sector, so that a mix of two is detected.

/// Bytes of a sector, the unit of atomicity at a power cut.
pub(super) const SECTOR: usize = 512;

/// The content of one sector.
pub(super) type Bytes = [u8; SECTOR];

/// A legal content of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Zeroes.
    Zero,
    /// The data of the write with this number; number 0 is the initial content.
    Written(u32),
    /// The data of the WRITE SAME with this number, which is the same in all sectors.
    Same(u32),
}

/// The bits of the first word of a sector that is not zero, and of one with [`Value::Same`].
const WRITTEN: u64 = 1 << 63;
const SAME: u64 = 1 << 62;

impl Value {
    /// A value that is never legal: the data of a file of a layered disk that answers for none.
    pub(super) const STALE: Self = Self::Written(u32::MAX);

    /// The bytes of the value in `sector`: number and sector in the first word, a hash of both in
    /// each other word.
    pub(super) fn bytes(self, sector: usize) -> Bytes {
        let mut bytes = [0; SECTOR];
        let name = match self {
            Self::Zero => return bytes,
            Self::Written(number) => (sector as u64) << 32 | u64::from(number) | WRITTEN,
            Self::Same(number) => u64::from(number) | WRITTEN | SAME,
        };
        let mut word = name;
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&word.to_le_bytes());
            word = (word ^ (word >> 29) ^ name).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        bytes
    }

    /// The number of the write, unless it wrote zeroes.
    pub(super) fn number(self) -> Option<u32> {
        match self {
            Self::Zero => None,
            Self::Written(number) | Self::Same(number) => Some(number),
        }
    }

    /// Whether these are the bytes of [`Value::STALE`] in any sector.
    pub(super) fn is_stale(bytes: &Bytes) -> bool {
        u64::from_le_bytes(*bytes.first_chunk().unwrap()) & (u64::from(u32::MAX) | WRITTEN | SAME)
            == u64::from(u32::MAX) | WRITTEN
    }

    /// The value of `bytes` in `sector`; `None` for garbage, a mix, or the value of another sector.
    pub(super) fn of(bytes: &[u8], sector: usize) -> Option<Self> {
        let name = u64::from_le_bytes(*bytes.first_chunk()?);
        let number = u32::try_from(name & 0xffff_ffff).ok()?;
        let value = match name {
            0 => Self::Zero,
            _ if name & SAME != 0 => Self::Same(number),
            _ => Self::Written(number),
        };
        (value.bytes(sector) == bytes).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_identified_by_bytes_and_sector() {
        for value in [Value::Zero, Value::Written(0), Value::Written(77), Value::Same(77)] {
            assert_eq!(Value::of(&value.bytes(9), 9), Some(value));
        }
        let (one, two) = (Value::Written(1).bytes(3), Value::Written(2).bytes(3));
        assert_eq!(Value::of(&one, 4), None, "the value of another sector");
        let mut torn = one;
        torn[100..].copy_from_slice(&two[100..]);
        assert_eq!(Value::of(&torn, 3), None, "a mix of two writes");
    }
}
