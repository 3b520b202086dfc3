//! Data buffers of requests: memory that others may change at any time, accessed by copies only.

use std::ops::Range;

/// A piece of this process's memory that a request reads from or writes to.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length. The caller of `Segment::new` keeps the memory valid
// for every use of it, on any thread.
unsafe impl Send for Segment {}

/// The segments of one request. The data path swaps these lists rather than allocating new ones.
pub type Segments = Vec<Segment>;

impl Segment {
    /// Describes `len` bytes at `base`.
    ///
    /// # Safety
    ///
    /// The memory must be mapped, readable and writable whenever the segment or a copy of it is
    /// used: in a request, from its push until its completion is reaped or its engine is dropped.
    /// No Rust reference to the memory may exist meanwhile. A guest may change it at any time, as
    /// it may change the target of a device's DMA.
    #[must_use]
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// First byte.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "segments are not collections")]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Drops the first `bytes`, at most the length, from the segment.
    pub fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.iov_len);
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(bytes);
        self.0.iov_len -= bytes;
    }

    /// Drops all but the first `bytes` from the segment.
    fn truncate(&mut self, bytes: usize) {
        self.0.iov_len = self.0.iov_len.min(bytes);
    }

    /// Copies from the segment's start; returns how many bytes, which is the shorter of the two.
    fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let len = self.len().min(buffer.len());
        // SAFETY: the segment is readable (`Segment::new`) and cannot overlap the buffer, to which
        // a reference exists.
        unsafe { std::ptr::copy_nonoverlapping(self.base(), buffer.as_mut_ptr(), len) };
        len
    }

    /// Copies to the segment's start; returns how many bytes, which is the shorter of the two.
    fn copy_from(&self, buffer: &[u8]) -> usize {
        let len = self.len().min(buffer.len());
        // SAFETY: as in `copy_to`; the segment is writable.
        unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), self.base(), len) };
        len
    }

    /// Whether all bytes are zero. A concurrent write of the guest may be seen or not.
    fn is_zero(&self) -> bool {
        const WORD: usize = size_of::<u64>();
        let (base, len) = (self.base(), self.len());
        // Guests' buffers are nearly always aligned; others are read byte by byte.
        let words = if base.addr().is_multiple_of(WORD) { len / WORD } else { 0 };
        let is_word_zero = |index: usize| {
            // SAFETY: an aligned word within the segment, which is readable (`Segment::new`).
            unsafe { base.cast::<u64>().wrapping_add(index).read_volatile() == 0 }
        };
        let is_byte_zero = |at: usize| {
            // SAFETY: a byte within the segment, which is readable (`Segment::new`).
            unsafe { base.wrapping_add(at).read_volatile() == 0 }
        };
        (0..words).all(is_word_zero) && (words * WORD..len).all(is_byte_zero)
    }
}

/// Sum of the segments' lengths, in bytes.
#[must_use]
pub fn total_len(segments: &[Segment]) -> usize {
    segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.len()))
}

/// Copies the segments' bytes, in order, to `buffer`; returns how many, which is the shorter of the
/// two.
pub fn gather(segments: &[Segment], buffer: &mut [u8]) -> usize {
    copy_each(segments, buffer.len(), |segment, range| {
        buffer.get_mut(range).map_or(0, |part| segment.copy_to(part))
    })
}

/// Copies `buffer` to the segments, in order; returns how many bytes, which is the shorter of the
/// two.
pub fn scatter(buffer: &[u8], segments: &[Segment]) -> usize {
    copy_each(segments, buffer.len(), |segment, range| {
        buffer.get(range).map_or(0, |part| segment.copy_from(part))
    })
}

/// Fills the segments with zeroes.
pub(crate) fn zero(segments: &[Segment]) {
    for segment in segments {
        let mut left = *segment;
        while left.len() > 0 {
            let filled = left.copy_from(&[0; 4096]);
            left.advance(filled);
        }
    }
}

/// Replaces `part` by the segments of the `len` bytes from `start` on.
pub(crate) fn slice(segments: &[Segment], start: usize, len: usize, part: &mut Segments) {
    part.clear();
    let (mut skip, mut left) = (start, len);
    for segment in segments {
        let mut segment = *segment;
        let skipped = skip.min(segment.len());
        segment.advance(skipped);
        skip -= skipped;
        segment.truncate(left);
        left -= segment.len();
        if segment.len() > 0 {
            part.push(segment);
        }
    }
}

/// Calls `copy` for each segment with the part of a buffer of `len` bytes that is left for it.
fn copy_each(
    segments: &[Segment],
    len: usize,
    mut copy: impl FnMut(&Segment, Range<usize>) -> usize,
) -> usize {
    segments.iter().fold(0, |copied, segment| copied + copy(segment, copied..len))
}

/// Whether the segments hold nothing but zeroes. A concurrent write of the guest may be seen or
/// not.
pub(crate) fn is_zero(segments: &[Segment]) -> bool {
    segments.iter().all(Segment::is_zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of the given lengths over `memory`, one behind the other.
    fn segments(memory: &mut [u8], lens: &[usize]) -> Segments {
        let base = memory.as_mut_ptr();
        let mut at = 0;
        let mut next = |len| {
            // SAFETY: within `memory`, which the tests keep and do not refer to meanwhile.
            let segment = unsafe { Segment::new(base.wrapping_add(at), len) };
            at += len;
            segment
        };
        lens.iter().map(|len| next(*len)).collect()
    }

    #[test]
    fn gather_and_scatter_copy_the_shorter_of_both() {
        let mut memory = *b"abcdefgh";
        let list = segments(&mut memory, &[3, 0, 2]);
        assert_eq!(total_len(&list), 5);
        let mut buffer = [b'.'; 8];
        assert_eq!(gather(&list, &mut buffer), 5);
        assert_eq!(&buffer, b"abcde...");
        assert_eq!(gather(&list, &mut buffer[..4]), 4);
        assert_eq!(scatter(b"1234567", &list), 5);
        assert_eq!(scatter(b"x", &list), 1);
        assert_eq!(&memory, b"x2345fgh");
    }

    #[test]
    fn slices_have_the_bytes_of_their_range() {
        let mut memory = *b"abcdefgh";
        let list = segments(&mut memory, &[3, 0, 2, 3]);
        for (start, len, bytes) in
            [(0, 8, "abcdefgh"), (2, 2, "cd"), (3, 5, "defgh"), (7, 9, "h"), (1, 0, ""), (8, 1, "")]
        {
            let mut part = segments(&mut [0; 1], &[1]);
            slice(&list, start, len, &mut part);
            let mut buffer = vec![0; total_len(&part)];
            gather(&part, &mut buffer);
            assert_eq!(buffer, bytes.as_bytes(), "{len} bytes at {start}");
        }
        let mut part = Segments::new();
        slice(&list, 2, 4, &mut part);
        zero(&part);
        assert_eq!(&memory, b"ab\0\0\0\0gh");
    }

    #[test]
    fn zeroes_are_found_at_any_alignment() {
        let mut memory = [0; 40];
        for (at, len) in [(0, 40), (1, 30), (3, 5), (8, 16)] {
            for dirty in [None, Some(at), Some(at + len - 1)] {
                memory.fill(0);
                if at > 0 {
                    memory[at - 1] = 1;
                }
                if let Some(dirty) = dirty {
                    memory[dirty] = 1;
                }
                let list = segments(&mut memory[at..], &[len]);
                assert_eq!(is_zero(&list), dirty.is_none(), "{len} bytes at {at}");
            }
        }
    }
}
