//! Progress of a transfer through its segments.
//!
//! Used from the worker's thread while the host works on no call of the request.

use super::host_call::IoBuffer;
use crate::{Segment, Segments};

/// The segments of a request, without what has been transferred.
#[derive(Debug)]
pub(super) struct Cursor {
    segments: Segments,
    first: usize,
}

impl Cursor {
    pub(super) fn new(segments: Segments) -> Self {
        let mut cursor = Self { segments, first: 0 };
        cursor.advance(0);
        cursor
    }

    pub(super) fn into_segments(self) -> Segments {
        self.segments
    }

    /// The segments that remain.
    pub(super) fn rest(&self) -> &[Segment] {
        self.segments.get(self.first..).unwrap_or_default()
    }

    /// The buffer for the next call. Valid until the cursor changes.
    pub(super) fn buffer(&self) -> IoBuffer {
        IoBuffer::of_segments(self.rest())
    }

    /// Skips `bytes`, and segments that are empty then.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(segment) = self.segments.get_mut(self.first) {
            let step = bytes.min(segment.len());
            segment.advance(step);
            bytes -= step;
            if segment.len() > 0 {
                break;
            }
            self.first += 1;
        }
    }

    /// Whether nothing remains.
    pub(super) fn is_spent(&self) -> bool {
        self.first >= self.segments.len()
    }
}
