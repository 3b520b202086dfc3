//! The requests of one queue that the engine holds: a fixed slab whose slot number is the tag.

use block::Segments;

use super::Head;

/// What is remembered of one request until it completes.
struct Slot<P> {
    head: Head,
    pending: P,
}

/// A slab of fixed size. The tag of a request is its slot, never the driver's index, so that
/// a driver that offers one descriptor twice cannot confuse two requests.
pub(super) struct InFlight<P> {
    slots: Box<[Option<Slot<P>>]>,
    free: Vec<u16>,
    /// Segment lists not lent out; they keep their capacity.
    spare: Vec<Segments>,
}

impl<P> InFlight<P> {
    /// A slab of `depth` slots.
    pub(super) fn new(depth: u16) -> Self {
        Self {
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            spare: (0..=depth).map(|_| Segments::new()).collect(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// An empty segment list to parse the next request into.
    pub(super) fn lend_segments(&mut self) -> Segments {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a segment list back.
    pub(super) fn return_segments(&mut self, mut segments: Segments) {
        segments.clear();
        self.spare.push(segments);
    }

    /// Remembers a request and names its tag; hands it back if the slab is full.
    pub(super) fn insert(&mut self, head: Head, pending: P) -> Result<u16, (Head, P)> {
        let Some(tag) = self.free.pop() else { return Err((head, pending)) };
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            *slot = Some(Slot { head, pending });
        }
        Ok(tag)
    }

    /// Forgets the request of a tag; `None` if there is none, which would be the engine's bug.
    pub(super) fn remove(&mut self, tag: u16) -> Option<(Head, P)> {
        let slot = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some((slot.head, slot.pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_unique_until_it_is_removed() {
        let mut slab = InFlight::new(2);
        let head = super::super::queue::tests::head;
        let first = slab.insert(head(7), 'a').unwrap();
        let second = slab.insert(head(7), 'b').unwrap();
        assert_ne!(first, second);
        assert!(slab.is_full());
        assert_eq!(slab.insert(head(8), 'c'), Err((head(8), 'c')));
        assert_eq!(slab.remove(first), Some((head(7), 'a')));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.insert(head(9), 'd'), Ok(first));
        assert_eq!(slab.remove(second), Some((head(7), 'b')));
        assert_eq!(slab.remove(99), None);
    }
}
