//! The memory side of a read or write: which bytes of which segments are still to move.
//!
//! Used from the worker's thread while the host works on nothing of the request.

use crate::host_file::DirectAlignment;
use crate::page::{PAGE, Page};
use crate::{Segment, Segments};

/// The most segments of one system call (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;

/// The most bytes a bounce buffer holds: what a guest can make the host allocate for one request.
const MAX_BOUNCE: usize = 256 << 10;

/// The segments of a request, less what has moved.
#[derive(Debug)]
pub(super) struct Cursor {
    segments: Segments,
    first: usize,
    direct: Option<DirectAlignment>,
    bounce: Option<Bounce>,
}

impl Cursor {
    pub(super) fn new(segments: Segments, direct: Option<DirectAlignment>) -> Self {
        let mut cursor = Self { segments, first: 0, direct, bounce: None };
        cursor.advance(0);
        cursor
    }

    pub(super) fn into_segments(self) -> Segments {
        self.segments
    }

    /// What the host moves next into memory. Stays valid until the next call on this cursor.
    pub(super) fn target(&mut self) -> Memory {
        self.bounce_misfits();
        let rest = self.segments.get(self.first..).unwrap_or_default();
        match &mut self.bounce {
            Some(bounce) => bounce.target(total_len(rest)),
            None => whole(rest),
        }
    }

    /// What the host moves next from memory. Stays valid until the next call on this cursor.
    pub(super) fn source(&mut self) -> Memory {
        self.bounce_misfits();
        let rest = self.segments.get(self.first..).unwrap_or_default();
        match &mut self.bounce {
            Some(bounce) => bounce.gather(rest),
            None => whole(rest),
        }
    }

    /// `bytes` were read into [`Cursor::target`].
    pub(super) fn filled(&mut self, bytes: usize) {
        if let Some(bounce) = &self.bounce {
            bounce.scatter(self.segments.get(self.first..).unwrap_or_default(), bytes);
        }
        self.advance(bytes);
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

    fn bounce_misfits(&mut self) {
        let Some(alignment) = self.direct else { return };
        let rest = self.segments.get(self.first..).unwrap_or_default();
        if self.bounce.is_none() && !fits(rest, alignment) {
            self.bounce = Some(Bounce::for_segments(rest));
        }
    }
}

/// The segments as they are, or as many as the host takes at once.
fn whole(segments: &[Segment]) -> Memory {
    match segments {
        [one] => Memory::buffer(one.base(), one.len()),
        many => Memory::Vector(many.as_ptr().cast(), clamp(many.len().min(MAX_SEGMENTS))),
    }
}

/// Memory as the host takes it.
pub(super) enum Memory {
    /// Address and length in bytes.
    Buffer(*mut u8, u32),
    /// Address and count.
    Vector(*const libc::iovec, u32),
}

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

fn total_len(segments: &[Segment]) -> usize {
    segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.len()))
}

/// Whether direct I/O takes the segments as they are.
fn fits(segments: &[Segment], alignment: DirectAlignment) -> bool {
    let (addresses, lens) = segments.iter().fold((0, 0), |(addresses, lens), segment| {
        (addresses | segment.base().addr(), lens | segment.len())
    });
    addresses.is_multiple_of(alignment.memory as usize)
        && lens.is_multiple_of(alignment.offset as usize)
}

/// Aligned memory between the disk and segments that direct I/O does not take.
#[derive(Debug)]
struct Bounce(Vec<Page>);

impl Bounce {
    fn for_segments(segments: &[Segment]) -> Self {
        let bytes = total_len(segments).min(MAX_BOUNCE);
        Self(vec![Page::ZERO; bytes.div_ceil(PAGE)])
    }

    fn capacity(&self) -> usize {
        self.0.len() * PAGE
    }

    fn target(&mut self, wanted: usize) -> Memory {
        Memory::buffer(self.0.as_mut_ptr().cast(), wanted.min(self.capacity()))
    }

    /// Copies as much of the segments as fits.
    fn gather(&mut self, segments: &[Segment]) -> Memory {
        let base: *mut u8 = self.0.as_mut_ptr().cast();
        let mut filled = 0;
        for segment in segments {
            let len = segment.len().min(self.capacity() - filled);
            // SAFETY: the segment is valid for its length until the request completes
            // (`Segment::new`); `filled + len` is within the pages, which nobody else refers to.
            unsafe {
                std::ptr::copy_nonoverlapping(segment.base(), base.wrapping_add(filled), len);
            }
            filled += len;
        }
        Memory::buffer(base, filled)
    }

    /// Copies the first `bytes` out to the segments.
    fn scatter(&self, segments: &[Segment], bytes: usize) {
        let base: *const u8 = self.0.as_ptr().cast();
        let bytes = bytes.min(self.capacity());
        let mut taken = 0;
        for segment in segments {
            let len = segment.len().min(bytes - taken);
            // SAFETY: the segment is valid for its length until the request completes
            // (`Segment::new`); `taken + len` is within the pages, which are no guest's memory.
            unsafe { std::ptr::copy_nonoverlapping(base.wrapping_add(taken), segment.base(), len) };
            taken += len;
        }
    }
}
