//! Memory aligned for direct I/O.

use std::mem;

use crate::{Completion, Segment};

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

/// Pages that are lent to a request of the disk's own, and not accessed meanwhile.
#[derive(Debug)]
pub(crate) struct LentPages {
    pages: PageBuffer,
    /// The request that has them.
    lent_to: Option<u16>,
}

impl LentPages {
    /// At least `len` bytes of zeroes.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { pages: PageBuffer::zeroed(len), lent_to: None }
    }

    /// The bytes; `None` while they are lent.
    pub(crate) fn bytes(&mut self) -> Option<&mut [u8]> {
        self.lent_to.is_none().then(|| self.pages.as_mut_slice())
    }

    /// Lends `len` bytes from `start` to the request `tag`. `None` while they are lent, or beyond
    /// their end.
    pub(crate) fn lend(&mut self, tag: u16, start: usize, len: usize) -> Option<Segment> {
        let base = self.bytes()?.get_mut(start..start.checked_add(len)?)?.as_mut_ptr();
        self.lent_to = Some(tag);
        // SAFETY: the pages do not move, and are not accessed until the engine has handed out the
        // completion of the request. Those that are dropped before are never freed.
        Some(unsafe { Segment::new(base, len) })
    }

    /// Ends the loan with the completion of its request.
    pub(crate) fn take_back(&mut self, completion: &Completion) {
        if self.lent_to == Some(completion.tag) {
            self.lent_to = None;
        }
    }
}

impl Drop for LentPages {
    fn drop(&mut self) {
        if self.lent_to.is_some() {
            mem::forget(mem::take(&mut self.pages));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_pages_are_not_accessible() {
        let mut pages = LentPages::zeroed(5000);
        assert_eq!(pages.bytes().unwrap().len(), 2 * PAGE);
        assert!(pages.lend(7, PAGE, PAGE + 1).is_none());
        assert_eq!(pages.lend(7, PAGE, 512).unwrap().len(), 512);
        assert!(pages.bytes().is_none() && pages.lend(8, 0, 512).is_none());
        pages.take_back(&Completion { tag: 8, result: Ok(()) });
        assert!(pages.bytes().is_none());
        pages.take_back(&Completion { tag: 7, result: Ok(()) });
        assert!(pages.bytes().is_some());
    }
}
