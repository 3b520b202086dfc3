//! A source of zeroes for hosts that cannot zero a range themselves.

use super::host_call::IoBuffer;

/// Aligned for direct I/O.
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

#[repr(C, align(4096))]
struct Zeroes([u8; 64 << 10]);

/// `wanted` bytes of zeroes, at most 64 KiB, to be read only.
pub(super) fn zeroes(wanted: u64) -> IoBuffer {
    let max = ZEROES.0.len();
    let len = usize::try_from(wanted).map_or(max, |wanted| wanted.min(max));
    IoBuffer::contiguous(ZEROES.0.as_ptr().cast_mut(), len)
}
