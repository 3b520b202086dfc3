//! Where zeroes come from when the host cannot zero by itself.

use super::cursor::Memory;

/// Aligned for direct I/O.
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

#[repr(C, align(4096))]
struct Zeroes([u8; 64 << 10]);

/// As many zeroes as are at hand, at most `wanted`. Only to be read.
pub(super) fn zeroes(wanted: u64) -> Memory {
    let most = ZEROES.0.len();
    let len = usize::try_from(wanted).map_or(most, |wanted| wanted.min(most));
    Memory::buffer(ZEROES.0.as_ptr().cast_mut(), len)
}
