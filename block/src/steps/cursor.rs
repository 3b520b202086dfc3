//! The memory side of a read or write: which bytes of which segments are still to move.
//!
//! Used from the worker's thread while the host works on nothing of the request.

use crate::{Segment, Segments};

/// The most segments of one system call (`UIO_MAXIOV`).
pub(super) const MAX_SEGMENTS: usize = 1024;

/// The segments of a request, less what has moved.
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

    /// What is still to move.
    pub(super) fn rest(&self) -> &[Segment] {
        self.segments.get(self.first..).unwrap_or_default()
    }

    /// What is still to move, or as much of it as the host takes at once. Valid until the next change.
    pub(super) fn memory(&self) -> Memory {
        whole(self.rest())
    }

    /// `bytes` are done with. Leaves the first segment that still has some.
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

    /// Whether everything has moved.
    pub(super) fn is_spent(&self) -> bool {
        self.first >= self.segments.len()
    }
}

/// The segments, or as many of them as the host takes at once.
#[inline]
pub(super) fn whole(segments: &[Segment]) -> Memory {
    match segments {
        [one] => Memory::buffer(one.base(), one.len()),
        many => Memory::Vector(many.as_ptr().cast(), clamp(many.len().min(MAX_SEGMENTS))),
    }
}

/// Memory as the host takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory {
    /// Address and length in bytes.
    Buffer(*mut u8, u32),
    /// Address and count.
    Vector(*const libc::iovec, u32),
}

// SAFETY: addresses and lengths; who makes a call of it keeps what they name valid until the answer,
// on whichever thread that is.
unsafe impl Send for Memory {}

impl Memory {
    pub(super) fn buffer(base: *mut u8, len: usize) -> Self {
        Self::Buffer(base, clamp(len))
    }
}

/// One transfer moves at most this much; the rest follows as after any short transfer. A whole number
/// of pages, as direct I/O wants.
fn clamp(len: usize) -> u32 {
    const MOST: u32 = 1 << 30;
    u32::try_from(len).map_or(MOST, |len| len.min(MOST))
}
