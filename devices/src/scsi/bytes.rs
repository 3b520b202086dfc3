//! Big-endian fields in byte strings of SCSI. Nothing here panics: what lies outside reads as zero, and is not written.

/// The field of `N` bytes at `at`; zero where there is none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(field(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// Writes a field at `at`, if there is room for it.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|tail| tail.get_mut(..field.len())) {
        place.copy_from_slice(field);
    }
}

/// `text` in a field of `N` bytes, padded with spaces (SPC-4 §4.3.1).
pub(super) fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        // Graphic ASCII only.
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
    field
}

/// A length in a field of sixteen bits.
pub(super) fn len16(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

/// A length in a field of thirty-two bits.
pub(super) fn len32(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}
