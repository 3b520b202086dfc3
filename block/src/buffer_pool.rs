//! Free bounce buffers of one disk, kept for reuse: a buffer of 256 KiB costs 64 page faults
//! whenever it is allocated.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::page::PageBuffer;

/// Buffers that are compared with the length wanted before one gives way to a new one.
const CANDIDATES: usize = 8;

/// The free buffers of a disk.
#[derive(Debug, Default)]
pub(crate) struct BufferPool(Mutex<FreeBuffers>);

#[derive(Debug, Default)]
struct FreeBuffers {
    buffers: Vec<PageBuffer>,
    /// Their sizes together.
    bytes: u64,
}

impl FreeBuffers {
    /// The index of a buffer of `len` bytes among the last ones.
    fn find(&self, len: usize) -> Option<usize> {
        let first = self.buffers.len().saturating_sub(CANDIDATES);
        let mut last = self.buffers.iter().enumerate().skip(first);
        last.find(|(_, buffer)| buffer.len() == len).map(|(index, _)| index)
    }

    fn remove(&mut self, index: usize) -> PageBuffer {
        let buffer = self.buffers.swap_remove(index);
        self.bytes -= buffer.len() as u64;
        buffer
    }

    fn pop(&mut self) -> Option<PageBuffer> {
        Some(self.remove(self.buffers.len().checked_sub(1)?))
    }
}

impl BufferPool {
    /// A buffer of `len` bytes, rounded up to pages, with any content.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> PooledBuffer {
        let mut free = self.lock();
        let found = free.find(PageBuffer::rounded(len)).map(|index| free.remove(index));
        let displaced = if found.is_none() { free.pop() } else { None };
        drop(free);
        drop(displaced);
        let pages = found.unwrap_or_else(|| PageBuffer::zeroed(len));
        PooledBuffer { pages, pool: Arc::clone(self) }
    }

    /// Frees the memory of free buffers beyond `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        let mut free = self.lock();
        while free.bytes > bytes && free.pop().is_some() {}
    }

    fn lock(&self) -> MutexGuard<'_, FreeBuffers> {
        // Each change is complete when the lock is released, also by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that returns to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct PooledBuffer {
    pages: PageBuffer,
    pool: Arc<BufferPool>,
}

impl PooledBuffer {
    /// Size in bytes, a multiple of the page.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.pages.as_slice()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice()
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let mut free = self.pool.lock();
        free.bytes += pages.len() as u64;
        free.buffers.push(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_buffer_is_reused_for_its_length() {
        let pool = Arc::new(BufferPool::default());
        let mut first = pool.take(5000);
        assert_eq!(first.len(), 8192);
        let address = first.as_mut_slice().as_ptr();
        drop(first);
        assert_eq!(pool.take(8192).as_slice().as_ptr(), address);
        let other = pool.take(4096);
        assert_eq!(other.len(), 4096);
        assert_eq!(pool.lock().bytes, 0, "the free one gave way");
    }

    #[test]
    fn free_memory_shrinks_to_its_limit() {
        let pool = Arc::new(BufferPool::default());
        drop((0..4).map(|_| pool.take(4096)).collect::<Vec<_>>());
        assert_eq!(pool.lock().bytes, 4 * 4096);
        pool.shrink_to(2 * 4096 + 1);
        assert_eq!(pool.lock().bytes, 2 * 4096);
        assert_eq!(pool.lock().buffers.len(), 2);
    }
}
