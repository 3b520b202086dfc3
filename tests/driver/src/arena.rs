//! Guest memory for a driver's buffers.

/// Hands out guest memory from a range, and begins again at its start when the end is reached: a
/// driver has far less in flight than the range holds.
#[derive(Clone, Debug)]
pub struct Arena {
    start: u64,
    end: u64,
    next: u64,
}

impl Arena {
    /// The range from `start` to `end`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end, next: start }
    }

    /// The address of `len` free bytes, aligned to `alignment`.
    pub fn take(&mut self, len: u64, alignment: u64) -> u64 {
        assert!(len <= self.end - self.start, "an arena too small for {len} bytes");
        let mut at = self.next.next_multiple_of(alignment);
        if at + len > self.end {
            at = self.start.next_multiple_of(alignment);
        }
        self.next = at + len;
        at
    }
}
