//! Memory of a command for data that the initiator neither sends nor receives, aligned for direct
//! I/O.

use std::fmt;

use ::block::Segment;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The alignment unit.
#[repr(C, align(4096))]
#[derive(Clone, FromBytes, Immutable, IntoBytes)]
struct ScratchPage([u8; 4096]);

/// A buffer that does not move. It outlives the requests that use its [`Scratch::segment`].
pub(super) struct Scratch {
    pages: Vec<ScratchPage>,
    /// Length in bytes.
    len: usize,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({})", self.len)
    }
}

impl Scratch {
    /// Maximum length in bytes: bounds the memory that an initiator can make the host use for one
    /// command.
    pub(super) const MAX_BYTES: usize = 64 << 10;

    /// A buffer of `len` zero bytes, at most [`Scratch::MAX_BYTES`].
    pub(super) fn new(len: u64) -> Self {
        let len = usize::try_from(len).map_or(Self::MAX_BYTES, |len| len.min(Self::MAX_BYTES));
        let pages = len.div_ceil(size_of::<ScratchPage>());
        Self { pages: vec![ScratchPage::new_zeroed(); pages], len }
    }

    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.pages.as_bytes().get(..self.len).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes().get_mut(..self.len).unwrap_or_default()
    }

    /// The first `len` bytes, for a request.
    pub(super) fn segment(&mut self, len: u64) -> Segment {
        let bytes = self.bytes_mut();
        let len = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
        // SAFETY: the pages stay in place until the buffer is dropped. A job owns the buffer and is
        // dropped only after its request has completed or its engine is gone. It does not access
        // the bytes while a request is in flight.
        unsafe { Segment::new(bytes.as_mut_ptr(), len) }
    }
}
