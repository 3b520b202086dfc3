//! The first half of a compare-and-write: what is on the disk against what the request says is there.

use super::cursor::Cursor;
use crate::page::{PAGE, Page};
use crate::{Miscompare, Segment, Segments, total_len};

/// What was read of the disk, and the request's own segments: what to compare it with, then what to write.
#[derive(Debug)]
pub(super) struct Compare {
    pages: Vec<Page>,
    segments: Segments,
}

impl Compare {
    /// Takes the segments of a request. The cursor is for reading what to compare with their first half.
    pub(super) fn new(segments: Segments) -> (Self, Cursor) {
        let len = total_len(&segments) / 2;
        let mut pages = vec![Page::ZERO; len.div_ceil(PAGE)];
        // SAFETY: the pages stay where they are on the heap until the request is settled, which owns this.
        let read = unsafe { Segment::new(pages.as_mut_ptr().cast(), len) };
        (Self { pages, segments }, Cursor::new(vec![read]))
    }

    /// The request's own segments.
    pub(super) fn into_segments(self) -> Segments {
        self.segments
    }

    /// Compares, after the read. The cursor is for writing the other half.
    pub(super) fn finish(self) -> Result<Cursor, (Miscompare, Segments)> {
        let len = total_len(&self.segments) / 2;
        if let Some(offset) = self.first_difference(len) {
            return Err((Miscompare { offset: offset as u64 }, self.segments));
        }
        let mut cursor = Cursor::new(self.segments);
        cursor.advance(len);
        Ok(cursor)
    }

    fn first_difference(&self, len: usize) -> Option<usize> {
        let mut at = 0;
        let mut expected = [0; PAGE];
        for segment in &self.segments {
            let mut within = 0;
            while within < segment.len() && at < len {
                let page = self.pages.get(at / PAGE)?;
                let found = page.0.get(at % PAGE..)?;
                let step = found.len().min(segment.len() - within).min(len - at);
                let source = segment.base().wrapping_add(within);
                // SAFETY: the segment is valid for its length until the request completes (`Segment::new`);
                // `step` bytes fit the array, which nobody else refers to.
                unsafe { std::ptr::copy_nonoverlapping(source, expected.as_mut_ptr(), step) };
                let differs = found.iter().zip(&expected).take(step).position(|(a, b)| a != b);
                if let Some(offset) = differs {
                    return Some(at + offset);
                }
                at += step;
                within += step;
            }
        }
        None
    }
}
