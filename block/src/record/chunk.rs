//! Memory for the data of recorded writes: chunks that pass from a queue's worker to the log thread
//! and back.
//!
//! A chunk belongs to the owner of its [`Chunk`], which exists once. So no byte is accessed from
//! two threads at a time, without a lock.

use std::ptr::NonNull;

/// Bytes of a chunk, and the steps at which a write may have a mark.
pub(super) const CHUNK: usize = 4096;

/// The right to access a chunk of one [`ChunkMemory`].
#[derive(Debug)]
pub(super) struct Chunk(u32);

impl Chunk {
    /// The chunk with this number. For those who made a number of a chunk that they owned, and pass
    /// it on once.
    pub(super) fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Its number; the right to access it goes with it.
    pub(super) fn into_number(self) -> u32 {
        self.0
    }
}

/// The chunks of one queue. The host has no page of a chunk before it is used.
#[derive(Debug)]
pub(super) struct ChunkMemory {
    /// The chunks, and a part before and behind them for their alignment.
    bytes: NonNull<[u8]>,
    /// The first chunk, which is aligned: a copy to a chunk that is not takes longer.
    first: *mut u8,
    chunks: u32,
}

// SAFETY: the bytes are accessed through a `Chunk` only, which one thread has at a time and passes
// on with release and acquire (`channel.rs`).
unsafe impl Send for ChunkMemory {}
// SAFETY: as above.
unsafe impl Sync for ChunkMemory {}

impl ChunkMemory {
    /// Memory for the chunks 0 to `chunks`, exclusive, and each of them.
    pub(super) fn new(chunks: u32) -> (Self, Vec<Chunk>) {
        let len = usize::try_from(chunks).unwrap_or(0) * CHUNK;
        let bytes = NonNull::from(Box::leak(vec![0; len + CHUNK].into_boxed_slice()));
        let start = bytes.cast::<u8>().as_ptr();
        let first = start.wrapping_add(start.addr().next_multiple_of(CHUNK) - start.addr());
        // The lowest number is used first, and those that were used last are used again.
        (Self { bytes, first, chunks }, (0..chunks).rev().map(Chunk).collect())
    }

    /// Where a chunk of this memory is; none is beyond its end.
    fn at(&self, chunk: &Chunk) -> *mut u8 {
        assert!(chunk.0 < self.chunks, "a chunk of another memory");
        self.first.wrapping_add(usize::try_from(chunk.0).unwrap_or(usize::MAX) * CHUNK)
    }

    /// The bytes of a chunk.
    pub(super) fn bytes(&self, chunk: &Chunk) -> &[u8; CHUNK] {
        // SAFETY: within the memory, which lives as long as `self`. Others have no access while
        // `chunk` is borrowed: it is the only one with its number.
        unsafe { &*self.at(chunk).cast::<[u8; CHUNK]>() }
    }

    /// The bytes of a chunk, to be changed.
    pub(super) fn bytes_mut<'c>(&'c self, chunk: &'c mut Chunk) -> &'c mut [u8; CHUNK] {
        // SAFETY: as in `bytes`; `chunk` is borrowed mutably.
        unsafe { &mut *self.at(chunk).cast::<[u8; CHUNK]>() }
    }
}

impl Drop for ChunkMemory {
    fn drop(&mut self) {
        // SAFETY: the box that was leaked in `new`. Nothing borrows it, as it would borrow `self`.
        drop(unsafe { Box::from_raw(self.bytes.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_do_not_overlap() {
        let (memory, mut chunks) = ChunkMemory::new(3);
        for (chunk, byte) in chunks.iter_mut().zip(1..) {
            memory.bytes_mut(chunk).fill(byte);
        }
        for (chunk, byte) in chunks.iter().zip(1..) {
            assert_eq!(memory.bytes(chunk), &[byte; CHUNK]);
            assert!(memory.bytes(chunk).as_ptr().addr().is_multiple_of(CHUNK));
        }
    }

    #[test]
    #[should_panic(expected = "a chunk of another memory")]
    fn a_number_beyond_the_memory_is_refused() {
        let (memory, _) = ChunkMemory::new(3);
        memory.bytes(&Chunk::from_number(3));
    }
}
