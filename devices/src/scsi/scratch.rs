//! Memory of a command's own, for what the initiator neither sends nor gets: aligned for direct I/O.

use ::block::Segment;

const PAGE: usize = 4096;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE]);

/// A buffer that does not move. It must outlive the requests that [`Scratch::segment`] went with.
pub(super) struct Scratch {
    pages: Vec<Page>,
    len: usize,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({})", self.len)
    }
}

impl Scratch {
    /// The most bytes of a buffer: what an initiator can make the host hold for one command.
    pub(super) const MOST: usize = 64 << 10;

    /// `len` bytes of zeroes, at most [`Scratch::MOST`].
    pub(super) fn new(len: u64) -> Self {
        let len = usize::try_from(len).map_or(Self::MOST, |len| len.min(Self::MOST));
        Self { pages: vec![Page([0; PAGE]); len.div_ceil(PAGE)], len }
    }

    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: pages are nothing but initialised bytes, in one piece, borrowed for the result's life.
        let all = unsafe {
            std::slice::from_raw_parts(self.pages.as_ptr().cast::<u8>(), self.pages.len() * PAGE)
        };
        all.get(..self.len).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        // SAFETY: the pages are `len` initialised bytes or more in one piece, borrowed for the result's life.
        let all = unsafe {
            std::slice::from_raw_parts_mut(
                self.pages.as_mut_ptr().cast::<u8>(),
                self.pages.len() * PAGE,
            )
        };
        all.get_mut(..len).unwrap_or_default()
    }

    /// Its first `len` bytes, for a request.
    pub(super) fn segment(&mut self, len: u64) -> Segment {
        let len = usize::try_from(len).map_or(self.len, |len| len.min(self.len));
        // SAFETY: the pages stay where they are until the buffer is dropped, and a job, which owns it, is
        // dropped only when its request has completed or its engine is gone. Nobody looks at them meanwhile.
        unsafe { Segment::new(self.pages.as_mut_ptr().cast(), len) }
    }
}
