//! Memory aligned for direct I/O.

/// Size and alignment of a [`Page`], in bytes: the largest alignment of direct I/O that is
/// supported.
pub(crate) const PAGE: usize = 4096;

/// One aligned page.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
struct Page([u8; PAGE]);

/// Whole pages, aligned. Does not move while it exists.
#[derive(Debug, Default)]
pub(crate) struct PageBuffer(Vec<Page>);

impl PageBuffer {
    /// At least `len` bytes of zeroes.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(vec![Page([0; PAGE]); len.div_ceil(PAGE)])
    }

    /// The size of a buffer for `len` bytes.
    pub(crate) fn rounded(len: usize) -> usize {
        len.next_multiple_of(PAGE)
    }

    /// Size in bytes, a multiple of the page.
    pub(crate) fn len(&self) -> usize {
        self.0.len() * PAGE
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: pages are arrays of bytes without padding, one behind the other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.len()) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.len()) }
    }
}
