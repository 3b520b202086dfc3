//! What a sector holds: bytes that name the write they come from, so that a mixture of two is seen.

/// Bytes of a sector: the unit in which a power cut tears.
pub(super) const SECTOR: usize = 512;

/// The content of one sector.
pub(super) type Bytes = [u8; SECTOR];

/// What a sector can rightly hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Zeroes.
    Zero,
    /// What the write of this number put there; number 0 is what the disk held at first.
    Written(u32),
}

impl Value {
    /// The value as it lies in `sector`: its number and its place in the first word, and every
    /// other word a hash of both.
    pub(super) fn bytes(self, sector: usize) -> Bytes {
        let mut bytes = [0; SECTOR];
        if let Self::Written(number) = self {
            let name = (sector as u64) << 32 | u64::from(number) | 1 << 63;
            let mut word = name;
            for chunk in bytes.chunks_exact_mut(8) {
                chunk.copy_from_slice(&word.to_le_bytes());
                word = (word ^ (word >> 29) ^ name).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            }
        }
        bytes
    }

    /// The value that `bytes` is in `sector`; `None` for garbage, mixtures, and what belongs to
    /// another sector.
    pub(super) fn of(bytes: &[u8], sector: usize) -> Option<Self> {
        let name = u64::from_le_bytes(*bytes.first_chunk()?);
        let value = if name == 0 {
            Self::Zero
        } else {
            Self::Written(u32::try_from(name & 0xffff_ffff).ok()?)
        };
        (value.bytes(sector) == bytes).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_by_its_bytes_and_its_place() {
        for value in [Value::Zero, Value::Written(0), Value::Written(77)] {
            assert_eq!(Value::of(&value.bytes(9), 9), Some(value));
        }
        let (one, two) = (Value::Written(1).bytes(3), Value::Written(2).bytes(3));
        assert_eq!(Value::of(&one, 4), None, "of another sector");
        let mut torn = one;
        torn[100..].copy_from_slice(&two[100..]);
        assert_eq!(Value::of(&torn, 3), None, "of two writes");
    }
}
