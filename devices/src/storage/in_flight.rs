//! The requests of one queue that the engine holds: a fixed slab whose slot number is the tag.

use super::stats::Kind;
use crate::virtqueue::Head;

/// What is remembered of one request until it completes, but for its chain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<P> {
    pub(crate) pending: P,
    pub(crate) kind: Kind,
    /// Bytes it moves.
    pub(crate) bytes: u64,
    /// When it was handed to the engine, in nanoseconds of the clock of its worker.
    pub(crate) since_ns: u64,
}

/// A slab of fixed size. The tag of a request is its slot, never the driver's index, so that
/// a driver that offers one descriptor twice cannot confuse two requests.
pub(crate) struct InFlight<P> {
    slots: Box<[Slot<P>]>,
    /// The first slot not in use; beyond the last if there is none.
    vacant: u16,
    len: u16,
}

struct Slot<P> {
    /// `None` while the slot is not in use.
    head: Option<Head>,
    /// Stays, spent, until the slot is used again.
    entry: Option<Entry<P>>,
    /// The next slot not in use, while this one is not.
    next: u16,
}

impl<P> InFlight<P> {
    /// A slab of `depth` slots.
    pub(crate) fn new(depth: u16) -> Self {
        let slots = (0..depth).map(|_| Slot { head: None, entry: None, next: 0 }).collect();
        let mut slab = Self { slots, vacant: 0, len: 0 };
        slab.make_vacant();
        slab
    }

    fn make_vacant(&mut self) {
        for (slot, next) in self.slots.iter_mut().zip(1..) {
            slot.next = next;
        }
        (self.vacant, self.len) = (0, 0);
    }

    /// How many requests there are.
    pub(crate) fn len(&self) -> u16 {
        self.len
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        usize::from(self.vacant) >= self.slots.len()
    }

    /// Remembers a request, and returns its tag; `None` if there is no room.
    #[inline]
    pub(crate) fn insert(&mut self, head: Head, entry: Entry<P>) -> Option<u16> {
        let tag = self.vacant;
        let slot = self.slots.get_mut(usize::from(tag))?;
        self.vacant = slot.next;
        self.len += 1;
        slot.head = Some(head);
        slot.entry = Some(entry);
        Some(tag)
    }

    /// Forgets all requests and returns them, oldest first.
    pub(crate) fn drain(&mut self) -> Vec<(Head, Entry<P>)> {
        let slots = self.slots.iter_mut().map(|slot| (slot.head.take(), slot.entry.take()));
        let mut left: Vec<_> = slots.filter_map(|(head, entry)| head.zip(entry)).collect();
        left.sort_by_key(|(_, entry)| entry.since_ns);
        self.make_vacant();
        left
    }

    /// All requests with their tags.
    pub(crate) fn entries(&mut self) -> impl Iterator<Item = (u16, &mut Entry<P>)> {
        let slots = (0..).zip(&mut self.slots).filter(|(_, slot)| slot.head.is_some());
        slots.filter_map(|(tag, slot)| Some((tag, slot.entry.as_mut()?)))
    }

    /// Takes back that a request was [removed](Self::remove), with its entry as it is. Nothing else happened since.
    #[cold]
    pub(crate) fn keep(&mut self, tag: u16, head: Head) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        self.vacant = slot.next;
        self.len += 1;
        slot.head = Some(head);
    }

    /// Ends the request of a tag; `None` if there is none, which would be the engine's bug.
    #[inline]
    pub(crate) fn remove(&mut self, tag: u16) -> Option<(Head, &mut Entry<P>)> {
        let slot = self.slots.get_mut(usize::from(tag))?;
        let head = slot.head.take()?;
        slot.next = self.vacant;
        self.vacant = tag;
        self.len -= 1;
        Some((head, slot.entry.as_mut()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::tests::head;

    fn entry(pending: char) -> Entry<char> {
        Entry { pending, kind: Kind::Read, bytes: 512, since_ns: 0 }
    }

    #[test]
    fn a_tag_is_unique_until_it_is_removed() {
        let mut slab = InFlight::new(2);
        let first = slab.insert(head(7), entry('a')).unwrap();
        let second = slab.insert(head(7), entry('b')).unwrap();
        assert_ne!(first, second);
        assert!(slab.is_full());
        assert_eq!(slab.len(), 2);
        assert!(slab.insert(head(1), entry('c')).is_none());
        assert_eq!(slab.remove(first), Some((head(7), &mut entry('a'))));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.insert(head(2), entry('c')), Some(first));
        assert!(slab.is_full());
        assert_eq!(slab.remove(second), Some((head(7), &mut entry('b'))));
        assert_eq!(slab.remove(first), Some((head(2), &mut entry('c'))));
        assert_eq!(slab.remove(99), None);
        assert_eq!(slab.len(), 0);
        let tag = slab.insert(head(3), entry('d')).unwrap();
        assert_eq!(slab.remove(tag), Some((head(3), &mut entry('d'))));
        slab.keep(tag, head(3));
        assert_eq!(slab.entries().map(|(tag, _)| tag).collect::<Vec<_>>(), [tag]);
        assert_ne!(slab.insert(head(4), entry('e')), Some(tag));
        assert!(slab.is_full() && slab.len() == 2);
        assert_eq!(slab.remove(tag), Some((head(3), &mut entry('d'))));
    }
}
