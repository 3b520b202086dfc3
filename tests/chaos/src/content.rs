//! Content of one block: its disk, number and generation, derived noise, and a checksum.

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;
const MAGIC: u64 = u64::from_le_bytes(*b"chaosblk");

/// The meaning of a block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes: never written, or discarded.
    Zero,
    /// Written by the write of this generation.
    Generation(u64),
}

/// Appends the bytes of a block.
pub(crate) fn encode(disk: u64, block: u64, generation: u64, bytes: &mut Vec<u8>) {
    let mut sum = Sum::default();
    let mut noise = disk ^ block << 8 ^ generation << 32;
    for at in 0..WORDS - 1 {
        let word = match at {
            0 => MAGIC,
            1 => disk,
            2 => block,
            3 => generation,
            _ => {
                noise =
                    noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                noise
            }
        };
        sum.add(word);
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(sum.0.to_le_bytes());
}

/// The content of a block that belongs to `disk` and `block`, or the reason why it has none.
pub(crate) fn decode(disk: u64, block: u64, bytes: &[u8]) -> Result<Content, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Content::Zero);
    }
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let (sum, words) = words.split_last().unwrap();
    let mut expected = Sum::default();
    words.iter().for_each(|word| expected.add(*word));
    if expected.0 != *sum {
        let zeroes = bytes.iter().filter(|byte| **byte == 0).count();
        return Err(format!(
            "the checksum is wrong (header {:x?}, {zeroes} zero bytes)",
            &words[..4]
        ));
    }
    match words[..4] {
        [MAGIC, at_disk, at_block, generation] if (at_disk, at_block) == (disk, block) => {
            Ok(Content::Generation(generation))
        }
        [_, at_disk, at_block, generation] => Err(format!(
            "it has the data of block {at_block} of disk {at_disk}, generation {generation}"
        )),
        _ => Err("it is short".to_owned()),
    }
}

/// FNV-1a over words.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_round_trips() {
        let mut bytes = Vec::new();
        encode(1, 2, 3, &mut bytes);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(decode(1, 2, &bytes), Ok(Content::Generation(3)));
        assert_eq!(decode(1, 2, &[0; BLOCK_BYTES]), Ok(Content::Zero));
    }

    #[test]
    fn flipped_bit_and_wrong_place_are_errors() {
        let mut bytes = Vec::new();
        encode(1, 2, 3, &mut bytes);
        assert!(decode(1, 4, &bytes).unwrap_err().contains("block 2 of disk 1"));
        bytes[1000] ^= 4;
        assert!(decode(1, 2, &bytes).unwrap_err().contains("checksum"));
    }
}
