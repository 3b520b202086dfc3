//! The requests of one queue that the engine holds: a fixed slab whose slot number is the tag.

use block::Segments;

use super::Head;
use super::stats::Kind;

/// What is remembered of one request until it completes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<P> {
    pub(super) head: Head,
    pub(super) pending: P,
    pub(super) kind: Kind,
    /// Bytes it moves.
    pub(super) bytes: u64,
    /// When it was handed to the engine, in nanoseconds of the clock of its worker.
    pub(super) since_ns: u64,
}

/// A slot set aside for the next request, with an empty segment list to parse it into.
#[derive(Debug)]
pub(super) struct Vacancy {
    pub(super) tag: u16,
    pub(super) segments: Segments,
}

/// A slab of fixed size. The tag of a request is its slot, never the driver's index, so that
/// a driver that offers one descriptor twice cannot confuse two requests.
pub(super) struct InFlight<P> {
    slots: Box<[Option<Entry<P>>]>,
    /// Slots not in use; their segment lists keep their capacity.
    vacant: Vec<Vacancy>,
}

impl<P> InFlight<P> {
    /// A slab of `depth` slots.
    pub(super) fn new(depth: u16) -> Self {
        let vacancy = |tag| Vacancy { tag, segments: Segments::new() };
        Self {
            slots: (0..depth).map(|_| None).collect(),
            vacant: (0..depth).rev().map(vacancy).collect(),
        }
    }

    /// How many requests there are; a slot set aside counts as one.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.vacant.is_empty()
    }

    /// Sets a slot aside, to be given to [`InFlight::occupy`] or [`InFlight::vacate`].
    pub(super) fn reserve(&mut self) -> Option<Vacancy> {
        self.vacant.pop()
    }

    /// Gives a slot back.
    pub(super) fn vacate(&mut self, tag: u16, mut segments: Segments) {
        segments.clear();
        self.vacant.push(Vacancy { tag, segments });
    }

    /// Remembers a request in the slot that was set aside under `tag`.
    pub(super) fn occupy(&mut self, tag: u16, entry: Entry<P>) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            *slot = Some(entry);
        }
    }

    /// Forgets all requests and returns them, oldest first.
    pub(super) fn drain(&mut self) -> Vec<Entry<P>> {
        let mut left = Vec::new();
        for (tag, slot) in (0..).zip(&mut self.slots) {
            if let Some(entry) = slot.take() {
                self.vacant.push(Vacancy { tag, segments: Segments::new() });
                left.push(entry);
            }
        }
        left.sort_by_key(|entry| entry.since_ns);
        left
    }

    /// Ends the request of a tag and vacates its slot; `None` if there is none, which would be the
    /// engine's bug.
    pub(super) fn remove(&mut self, tag: u16, segments: Segments) -> Option<Entry<P>> {
        let entry = self.slots.get_mut(usize::from(tag))?.take()?;
        self.vacate(tag, segments);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pending: char) -> Entry<char> {
        let head = super::super::queue::tests::head(7);
        Entry { head, pending, kind: Kind::Read, bytes: 512, since_ns: 0 }
    }

    #[test]
    fn a_tag_is_unique_until_it_is_removed() {
        let mut slab = InFlight::new(2);
        let (first, second) = (slab.reserve().unwrap(), slab.reserve().unwrap());
        assert_ne!(first.tag, second.tag);
        assert!(slab.is_full());
        assert_eq!(slab.len(), 2);
        assert!(slab.reserve().is_none());
        slab.occupy(first.tag, entry('a'));
        slab.occupy(second.tag, entry('b'));
        assert_eq!(slab.remove(first.tag, first.segments), Some(entry('a')));
        assert_eq!(slab.remove(first.tag, Segments::new()), None);
        assert_eq!(slab.reserve().unwrap().tag, first.tag);
        assert!(slab.is_full());
        assert_eq!(slab.remove(second.tag, second.segments), Some(entry('b')));
        assert_eq!(slab.remove(99, Segments::new()), None);
    }
}
