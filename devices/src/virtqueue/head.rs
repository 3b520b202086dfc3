//! The obligation to return a chain to the driver.

use std::mem::ManuallyDrop;
use std::thread;

/// The head of a chain taken from the available ring.
///
/// [`Queue::push_used`](super::Queue::push_used) returns the chain and consumes its head;
/// [`Queue::abandon`](super::Queue::abandon) leaves it to a reset or to the next worker. A head
/// that is dropped otherwise panics in builds with debug assertions. In other builds the queue
/// reports the lost chain as an error when it is dropped.
#[must_use = "the driver waits for each chain"]
#[derive(Debug)]
pub struct Head(u16);

impl Head {
    pub(super) fn new(index: u16) -> Self {
        Self(index)
    }

    /// Index of the chain's first descriptor.
    pub(super) fn index(&self) -> u16 {
        self.0
    }

    /// Ends the obligation. Returns the index of the chain's first descriptor.
    #[inline]
    pub(super) fn into_index(self) -> u16 {
        ManuallyDrop::new(self).0
    }
}

impl Drop for Head {
    /// Compiles to nothing without debug assertions: the data path drops `Option<Head>`.
    #[inline]
    fn drop(&mut self) {
        debug_assert!(thread::panicking(), "chain {} was dropped without completion", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "chain 7 was dropped without completion")]
    fn dropping_a_head_panics() {
        drop(Head::new(7));
    }

    #[test]
    fn a_consumed_head_is_silent() {
        assert_eq!(Head::new(7).into_index(), 7);
    }
}
