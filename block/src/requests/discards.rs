//! Discards on their way through an engine's requests: gathered, in turns, and writes of zeroes that become some.

use super::Requests;
use crate::host_file::{HostFile, promises_durability};
use crate::segment::is_zero;
use crate::trim::Run;
use crate::{ByteRange, DetectZeroes, Durability, Operation, Segment, total_len};

impl Requests {
    /// Lets the discards go that have waited for their neighbours.
    pub(super) fn discard_gathered(&mut self) {
        for Run { tags, range, gathered } in self.trims.release() {
            let Some((&first, others)) = tags.split_first() else { continue };
            for other in others {
                if let Some(Some(request)) = self.slots.get_mut(usize::from(*other)) {
                    request.ride(true);
                }
            }
            let durable = tags.iter().any(|tag| {
                let request = self.slots.get(usize::from(*tag)).and_then(Option::as_ref);
                request.is_some_and(|request| promises_durability(request.op()))
            });
            let durability = if durable { Durability::Durable } else { Durability::Volatile };
            if let Some(Some(request)) = self.slots.get_mut(usize::from(first)) {
                request.discard_instead(range, durability, &self.host);
                self.host.trimmed.gathered(gathered);
                self.set_off(first);
            }
        }
    }

    /// Nobody discards for a request any more: it waits for its neighbours once more.
    pub(super) fn gather_again(&mut self, tag: u16) {
        let now = self.now();
        let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) else { return };
        request.ride(false);
        if let Operation::Discard { range, .. } = request.op()
            && !self.trims.gather(tag, range, now)
        {
            self.set_off(tag);
        }
    }

    /// Readies the next chunk to discard, if it is time.
    pub(super) fn take_turns(&mut self) {
        if self.draining {
            return;
        }
        let Self { trims, host, .. } = self;
        let Some(tag) = trims.next_turn(|| host.clock.now(), &host.activity) else { return };
        if let Some(Some(request)) = self.slots.get_mut(usize::from(tag)) {
            request.set_chunk(self.trims.cut(request.range_left()));
            self.ready.push_back(tag);
        }
    }
}

/// The operation, or a zeroing in place of a write of nothing but zeroes.
pub(super) fn without_zeroes(op: Operation, segments: &[Segment], host: &HostFile) -> Operation {
    match op {
        Operation::Write { at, durability }
            if host.detect_zeroes != DetectZeroes::Off && is_zero(segments) =>
        {
            let range = ByteRange { start: at, len: total_len(segments) as u64 };
            let unmap = host.detect_zeroes == DetectZeroes::Unmap;
            Operation::WriteZeroes { range, unmap, durability }
        }
        _ => op,
    }
}
