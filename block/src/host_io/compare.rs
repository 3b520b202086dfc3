//! The comparison of a compare-and-write: the disk's data against the first half of the request's.

use super::cursor::Cursor;
use crate::page::PageBuffer;
use crate::{Miscompare, Segment, Segments, gather, total_len};

/// The data read from the disk, and the request's segments: what it is compared with, then the data
/// to write.
#[derive(Debug)]
pub(super) struct Compare {
    found: PageBuffer,
    segments: Segments,
}

impl Compare {
    /// Takes the segments of a request. The cursor reads the disk's data into this.
    pub(super) fn new(segments: Segments) -> (Self, Cursor) {
        let len = total_len(&segments) / 2;
        let mut found = PageBuffer::zeroed(len);
        // SAFETY: the buffer is on the heap and does not move; the request owns it until it has
        // completed, and refers to it after the read only.
        let read = unsafe { Segment::new(found.as_mut_slice().as_mut_ptr(), len) };
        (Self { found, segments }, Cursor::new(vec![read]))
    }

    /// The request's segments.
    pub(super) fn into_segments(self) -> Segments {
        self.segments
    }

    /// Compares, after the read. The cursor is for the write of the second half.
    ///
    /// # Errors
    ///
    /// The offset of the first difference, with the request's segments.
    pub(super) fn finish(self) -> Result<Cursor, (Miscompare, Segments)> {
        let len = total_len(&self.segments) / 2;
        let mut expected = vec![0; len];
        gather(&self.segments, &mut expected);
        let differs = self.found.as_slice().iter().zip(&expected).position(|(a, b)| a != b);
        if let Some(offset) = differs {
            return Err((Miscompare { offset: offset as u64 }, self.segments));
        }
        let mut cursor = Cursor::new(self.segments);
        cursor.advance(len);
        Ok(cursor)
    }
}
