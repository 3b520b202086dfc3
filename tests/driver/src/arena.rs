//! Allocator of guest memory for a driver's buffers.

/// Allocates guest memory from a range and wraps around at its end. Nothing is freed: a driver has
/// far less in flight than the range holds.
#[derive(Clone, Debug)]
pub struct Arena {
    start: u64,
    end: u64,
    next: u64,
}

impl Arena {
    /// An arena over the range from `start` to `end`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end, next: start }
    }

    /// Allocates `len` bytes aligned to `alignment` and returns their address.
    pub fn alloc(&mut self, len: u64, alignment: u64) -> u64 {
        assert!(len <= self.end - self.start, "the arena is smaller than {len} bytes");
        let mut at = self.next.next_multiple_of(alignment);
        if at + len > self.end {
            at = self.start.next_multiple_of(alignment);
        }
        self.next = at + len;
        at
    }
}
