//! The requests of one queue that its engines hold: a table of fixed size, indexed by tag.

use super::stats::OperationKind;

/// A request until it completes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InFlightRequest<P> {
    /// State of the protocol.
    pub(super) pending: P,
    pub(super) kind: OperationKind,
    /// Bytes that it moves, discards or zeroes.
    pub(super) bytes: u64,
    /// When it was pushed to the engine, in nanoseconds of the worker's clock.
    pub(super) since_ns: u64,
}

/// A table of requests. The tag of a request is its slot and never an index of the driver, so that
/// a driver that offers a descriptor twice cannot confuse two requests. `T` is what the ring needs
/// to return the request.
pub(super) struct InFlightTable<T, P> {
    slots: Box<[TableSlot<T, P>]>,
    /// First vacant slot; the number of slots if the table is full.
    vacant: u16,
    len: u16,
}

struct TableSlot<T, P> {
    /// `None` while the slot is vacant.
    token: Option<T>,
    /// Left in place, unused, until the slot is reused: moving it out would cost a copy.
    request: Option<InFlightRequest<P>>,
    /// The next vacant slot, while this one is vacant.
    next: u16,
}

impl<T, P> InFlightTable<T, P> {
    /// A table for `depth` requests.
    pub(super) fn new(depth: u16) -> Self {
        let slots = (0..depth).map(|_| TableSlot { token: None, request: None, next: 0 }).collect();
        let mut table = Self { slots, vacant: 0, len: 0 };
        table.link_vacant();
        table
    }

    /// Makes all slots vacant.
    fn link_vacant(&mut self) {
        for (slot, next) in self.slots.iter_mut().zip(1..) {
            slot.next = next;
        }
        (self.vacant, self.len) = (0, 0);
    }

    /// Number of requests.
    pub(super) fn len(&self) -> u16 {
        self.len
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        usize::from(self.vacant) >= self.slots.len()
    }

    /// Adds a request and returns its tag; `None` if the table is full, which the caller excludes.
    #[inline]
    pub(super) fn insert(&mut self, token: T, request: InFlightRequest<P>) -> Option<u16> {
        let tag = self.vacant;
        let slot = self.slots.get_mut(usize::from(tag))?;
        self.vacant = slot.next;
        self.len += 1;
        slot.token = Some(token);
        slot.request = Some(request);
        Some(tag)
    }

    /// Removes all requests and returns them, oldest first.
    pub(super) fn drain(&mut self) -> Vec<(T, InFlightRequest<P>)> {
        let slots = self.slots.iter_mut().map(|slot| (slot.token.take(), slot.request.take()));
        let mut left: Vec<_> = slots.filter_map(|(token, request)| token.zip(request)).collect();
        left.sort_by_key(|(_, request)| request.since_ns);
        self.link_vacant();
        left
    }

    /// All requests with their tags.
    pub(super) fn requests(&mut self) -> impl Iterator<Item = (u16, &mut InFlightRequest<P>)> {
        let slots = (0..).zip(&mut self.slots).filter(|(_, slot)| slot.token.is_some());
        slots.filter_map(|(tag, slot)| Some((tag, slot.request.as_mut()?)))
    }

    /// Reverts the [removal](Self::remove) of a request, which was the last change of the table.
    #[cold]
    pub(super) fn restore(&mut self, tag: u16, token: T) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        self.vacant = slot.next;
        self.len += 1;
        slot.token = Some(token);
    }

    /// Removes a request; `None` if the tag is vacant, which is a bug of the engine.
    #[inline]
    pub(super) fn remove(&mut self, tag: u16) -> Option<(T, &mut InFlightRequest<P>)> {
        let slot = self.slots.get_mut(usize::from(tag))?;
        let token = slot.token.take()?;
        slot.next = self.vacant;
        self.vacant = tag;
        self.len -= 1;
        Some((token, slot.request.as_mut()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pending: char) -> InFlightRequest<char> {
        InFlightRequest { pending, kind: OperationKind::Read, bytes: 512, since_ns: 0 }
    }

    #[test]
    fn a_tag_is_unique_until_it_is_removed() {
        let mut table = InFlightTable::new(2);
        let first = table.insert(7, request('a')).unwrap();
        let second = table.insert(7, request('b')).unwrap();
        assert_ne!(first, second);
        assert!(table.is_full());
        assert_eq!(table.len(), 2);
        assert_eq!(table.insert(1, request('c')), None);
        assert_eq!(table.remove(first), Some((7, &mut request('a'))));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.insert(2, request('c')), Some(first));
        assert!(table.is_full());
        assert_eq!(table.remove(second), Some((7, &mut request('b'))));
        assert_eq!(table.remove(first), Some((2, &mut request('c'))));
        assert_eq!(table.remove(99), None);
        assert_eq!(table.len(), 0);
        let tag = table.insert(3, request('d')).unwrap();
        assert_eq!(table.remove(tag), Some((3, &mut request('d'))));
        table.restore(tag, 3);
        assert_eq!(table.requests().map(|(tag, _)| tag).collect::<Vec<_>>(), [tag]);
        assert_ne!(table.insert(4, request('e')), Some(tag));
        assert!(table.is_full() && table.len() == 2);
        assert_eq!(table.remove(tag), Some((3, &mut request('d'))));
    }
}
