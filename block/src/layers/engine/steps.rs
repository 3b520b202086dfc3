//! The steps of the requests that are more than forwarded.

use std::io;

use super::super::levels::Answerer;
use super::super::map::touched;
use super::super::map_sync::Ticket;
use super::super::unit::BLOCK;
use super::slot::{Change, ChangeStage, CopyUp, ReadCursor, Slot, SlotWork};
use super::{LayerEngine, moved};
use crate::segment::{slice, zero};
use crate::{
    ByteOffset, ByteRange, Completion, Durability, Operation, Request, Segments, total_len,
};

impl LayerEngine {
    /// Accepts a request that the top does not answer for as it is.
    #[cold]
    pub(super) fn push_other(&mut self, request: Request<'_>) {
        if !self.is_within(&request) {
            let invalid = io::Error::from_raw_os_error(libc::EINVAL);
            return self.complete(request.tag, Err(invalid));
        }
        let Some(range) = self.range_of(&request) else { return self.forward(0, request) };
        match request.op {
            Operation::Read { at } => {
                let end = at.0 + range.len;
                self.start_read(request, ReadCursor { from: 0, start: at.0, at: at.0, end });
            }
            Operation::Flush => self.start_flush(request),
            op => {
                let (first, end) = touched(range);
                if self.levels.top.map.run(first, end) != (true, end) {
                    self.start_change(request, range);
                } else {
                    if op.is_durable() && !self.is_map_clean(first, end) {
                        self.begin(request.tag, SlotWork::Durable { first, end });
                    }
                    self.forward(0, request);
                }
            }
        }
    }

    /// The bytes of the disk that a request is about; `None` for one that the top refuses or
    /// completes at once.
    fn range_of(&self, request: &Request<'_>) -> Option<ByteRange> {
        let range = bytes_of(request);
        if matches!(request.op, Operation::Flush) {
            return Some(range);
        }
        let top = &self.levels.top;
        let unit = u64::from(top.logical_block);
        let is_whole = range.start.0.is_multiple_of(unit) && range.len.is_multiple_of(unit);
        let is_refused = !matches!(request.op, Operation::Read { .. }) && top.is_read_only;
        (range.len > 0 && is_whole && !is_refused).then_some(range)
    }

    /// Whether a request is within the disk: the file of the top has more before and after it.
    fn is_within(&self, request: &Request<'_>) -> bool {
        let ByteRange { start: ByteOffset(start), len } = bytes_of(request);
        start.checked_add(len).is_some_and(|end| end <= self.levels.capacity())
    }

    /// Whether the bits of these blocks are durable if they are set.
    fn is_map_clean(&self, first: u64, end: u64) -> bool {
        self.levels.sync.is_clean(|| self.levels.top.map.is_dirty(first, end))
    }

    /// Notes what is to be done when the tag's request of a level completes.
    fn begin(&mut self, tag: u16, work: SlotWork) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.work = work;
            self.stepping += 1;
        }
    }

    /// Keeps the segments of a request that is done step by step.
    fn keep_segments(&mut self, request: &mut Request<'_>) {
        if let Some(slot) = self.slots.get_mut(usize::from(request.tag)) {
            std::mem::swap(&mut slot.segments, request.segments);
        }
    }

    /// Takes the work of a tag, which it no longer has.
    fn take_work(&mut self, tag: u16) -> SlotWork {
        let slot = self.slots.get_mut(usize::from(tag));
        let work = slot.map(|slot| std::mem::take(&mut slot.work)).unwrap_or_default();
        if !matches!(work, SlotWork::Forwarded) {
            self.stepping -= 1;
        }
        work
    }

    fn start_read(&mut self, mut request: Request<'_>, cursor: ReadCursor) {
        match self.levels.piece(0, cursor.at, cursor.end) {
            (Answerer::Level(level), end) if end == cursor.end => self.forward(level, request),
            (Answerer::Zeroes, end) if end == cursor.end => {
                zero(request.segments);
                self.complete(request.tag, Ok(()));
            }
            _ => {
                self.keep_segments(&mut request);
                self.read_on(request.tag, cursor);
            }
        }
    }

    /// Reads the next piece that a level has, or completes the request.
    fn read_on(&mut self, tag: u16, mut cursor: ReadCursor) {
        let segments =
            self.slots.get_mut(usize::from(tag)).map(|slot| std::mem::take(&mut slot.segments));
        let segments = segments.unwrap_or_default();
        let piece = self.next_piece(&mut cursor, &segments);
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.segments = segments;
        }
        match piece {
            Some((level, at)) => {
                self.begin(tag, SlotWork::Read(cursor));
                self.push_part(level, tag, Operation::Read { at });
            }
            None => self.complete(tag, Ok(())),
        }
    }

    /// Zeroes the pieces that no level has, up to the next one that a level has: its level and its
    /// place there. Its segments are in `part`. `None` at the end.
    fn next_piece(
        &mut self,
        cursor: &mut ReadCursor,
        segments: &Segments,
    ) -> Option<(usize, ByteOffset)> {
        while cursor.at < cursor.end {
            let (source, end) = self.levels.piece(cursor.from, cursor.at, cursor.end);
            let (at, len) = (cursor.at, end - cursor.at);
            let skipped = usize::try_from(at - cursor.start).unwrap_or(usize::MAX);
            slice(segments, skipped, usize::try_from(len).unwrap_or(usize::MAX), &mut self.part);
            cursor.at = end;
            match source {
                Answerer::Zeroes => zero(&self.part),
                Answerer::Level(level) => {
                    return Some((level, ByteOffset(self.levels.place(level, at))));
                }
            }
        }
        None
    }

    /// Pushes an operation at a place of a level's file, with the segments in `part`.
    fn push_part(&mut self, level: usize, tag: u16, op: Operation) {
        let mut segments = std::mem::take(&mut self.part);
        self.push_to(level, Request { tag, op, segments: &mut segments });
        self.part = segments;
    }

    fn start_flush(&mut self, request: Request<'_>) {
        let top = &self.levels.top;
        if top.ignores_flushes
            || top.is_read_only
            || self.levels.sync.is_clean(|| self.levels.top.map.has_dirty())
        {
            return self.forward(0, request);
        }
        self.join_sync(request.tag, true);
        self.revive();
    }

    /// Lets a request wait for the next write-back of the map.
    fn join_sync(&mut self, tag: u16, wants_flush: bool) {
        let ticket = self.levels.sync.join(&self.kick, wants_flush);
        self.begin(tag, SlotWork::Sync(ticket));
        self.waiting.push(tag);
    }

    fn start_change(&mut self, mut request: Request<'_>, range: ByteRange) {
        let (first, end) = touched(range);
        let bytes = first * BLOCK..end * BLOCK;
        let (claim, is_granted) = self.levels.first_writes.claim(&self.kick, &bytes, false);
        let (tag, op) = (request.tag, request.op);
        let change = Change { op, range, claim: Some(claim), stage: ChangeStage::Claiming };
        self.keep_segments(&mut request);
        self.begin(tag, SlotWork::Change(Box::new(change)));
        if is_granted {
            self.change_on(tag);
        } else {
            self.waiting.push(tag);
        }
    }

    /// Does the next step of a change that has its claim.
    fn change_on(&mut self, tag: u16) {
        let Self { slots, levels, part, .. } = self;
        let Some(Slot { work: SlotWork::Change(change), segments }) =
            slots.get_mut(usize::from(tag))
        else {
            return;
        };
        match change.next_copy(|block| levels.top.map.is_set(block)) {
            Some(block) => {
                let copy = CopyUp::new(block, levels.capacity());
                self.copy_on(tag, copy);
            }
            None => {
                change.stage = ChangeStage::Changing;
                let place = |at: ByteOffset| ByteOffset(levels.place(0, at.0));
                let op = moved(change.op, place);
                part.clear();
                std::mem::swap(part, segments);
                self.push_part(0, tag, op);
            }
        }
    }

    /// Reads the next piece of a block that is copied, or writes the block.
    fn copy_on(&mut self, tag: u16, mut copy: CopyUp) {
        let mut cursor = copy.cursor;
        let len = usize::try_from(cursor.end - cursor.start).unwrap_or_default();
        let segments: Segments = copy.pages.lend(tag, 0, len).into_iter().collect();
        let piece = self.next_piece(&mut cursor, &segments);
        copy.cursor = cursor;
        let (level, op) = match piece {
            Some((level, at)) => (level, Operation::Read { at }),
            None => {
                copy.is_written = true;
                self.part.clear();
                self.part.extend_from_slice(&segments);
                let at = ByteOffset(self.levels.place(0, cursor.start));
                (0, Operation::Write { at, durability: Durability::Volatile })
            }
        };
        if let Some(Slot { work: SlotWork::Change(change), .. }) =
            self.slots.get_mut(usize::from(tag))
        {
            change.stage = ChangeStage::Copying(copy);
        }
        self.push_part(level, tag, op);
    }

    /// Does what follows the completion of a level's request.
    pub(super) fn handle(&mut self, completion: Completion) {
        let tag = completion.tag;
        if tag == self.map_tag {
            return self.handle_map_writer(&completion);
        }
        let slot = self.slots.get_mut(usize::from(tag));
        if let Some(Slot { work: SlotWork::Change(change), .. }) = slot {
            if let ChangeStage::Copying(copy) = &mut change.stage {
                copy.pages.take_back(&completion);
            }
            return self.handle_change(tag, completion.result);
        }
        match (self.take_work(tag), completion.result) {
            (SlotWork::Read(cursor), Ok(())) => self.read_on(tag, cursor),
            (SlotWork::Durable { first, end }, Ok(())) if !self.is_map_clean(first, end) => {
                self.join_sync(tag, false);
            }
            (_, result) => self.complete(tag, result),
        }
    }

    fn handle_change(&mut self, tag: u16, result: io::Result<()>) {
        let Some(Slot { work: SlotWork::Change(change), .. }) =
            self.slots.get_mut(usize::from(tag))
        else {
            return;
        };
        match (std::mem::replace(&mut change.stage, ChangeStage::Changing), result) {
            (ChangeStage::Copying(copy), Ok(())) => {
                if !copy.is_written {
                    return self.copy_on(tag, copy);
                }
                self.levels.set(copy.block, copy.block + 1, false);
                self.change_on(tag);
            }
            (_, result) => self.end_change(tag, result),
        }
    }

    /// Ends a change: the top answers for its blocks if it was made.
    fn end_change(&mut self, tag: u16, result: io::Result<()>) {
        let SlotWork::Change(change) = self.take_work(tag) else { return };
        let (first, end) = change.touched();
        let is_durable = change.op.is_durable();
        if result.is_ok() {
            let (first, end) = change.answered(self.levels.top.discard);
            self.levels.set(first, end, is_durable);
        }
        if let Some(claim) = change.claim {
            self.levels.first_writes.release(&self.kick, claim);
        }
        if result.is_ok() && is_durable && !self.is_map_clean(first, end) {
            return self.join_sync(tag, false);
        }
        self.complete(tag, result);
    }

    fn handle_map_writer(&mut self, completion: &Completion) {
        let mut segments = std::mem::take(&mut self.part);
        let op = self.map_writer.handle(&self.levels, completion, &mut segments);
        self.part = segments;
        self.write_map(op);
    }

    /// Pushes the next request of the map's write-back.
    fn write_map(&mut self, op: Option<Operation>) {
        if let Some(op) = op {
            self.push_part(0, self.map_tag, op);
        } else {
            self.stepping -= 1;
        }
    }

    /// Resumes the requests that need not wait any longer, and starts a write-back of the map if a
    /// request waits for one and none runs.
    pub(super) fn revive(&mut self) {
        let mut index = 0;
        while let Some(&tag) = self.waiting.get(index) {
            let has_claim = self.slots.get(usize::from(tag)).is_some_and(Slot::is_change);
            if !self.revive_one(tag) {
                index += 1;
                continue;
            }
            self.waiting.swap_remove(index);
            if has_claim {
                // It may be complete already, and its claim be granted to another request.
                index = 0;
            }
        }
    }

    /// Whether the request no longer waits.
    fn revive_one(&mut self, tag: u16) -> bool {
        let Some(slot) = self.slots.get(usize::from(tag)) else { return true };
        match &slot.work {
            SlotWork::Change(change) => {
                let claim = change.claim.as_ref();
                let is_granted =
                    claim.is_some_and(|claim| self.levels.first_writes.is_granted(claim));
                if is_granted {
                    self.change_on(tag);
                }
                is_granted
            }
            SlotWork::Sync(ticket) => self.revive_synced(tag, *ticket),
            SlotWork::Forwarded | SlotWork::Read(_) | SlotWork::Durable { .. } => true,
        }
    }

    fn revive_synced(&mut self, tag: u16, ticket: Ticket) -> bool {
        if let Some(result) = self.levels.sync.result(ticket) {
            self.take_work(tag);
            self.complete(tag, result);
            return true;
        }
        if !self.map_writer.is_running() {
            let mut segments = std::mem::take(&mut self.part);
            let op = self.map_writer.start(&self.levels, &self.kick, self.map_tag, &mut segments);
            self.part = segments;
            if op.is_some() {
                self.stepping += 1;
                self.write_map(op);
            } else if let Some(result) = self.levels.sync.result(ticket) {
                // There was nothing to do.
                self.take_work(tag);
                self.complete(tag, result);
                return true;
            }
        }
        false
    }

    /// Completes a request that waits for a claim or for the map with `ECANCELED`. Returns `false`
    /// for any other.
    pub(super) fn cancel_waiting(&mut self, tag: u16) -> bool {
        let Some(index) = self.waiting.iter().position(|waiting| *waiting == tag) else {
            return false;
        };
        let canceled = Err(io::Error::from_raw_os_error(libc::ECANCELED));
        match self.slots.get(usize::from(tag)).map(|slot| &slot.work) {
            Some(SlotWork::Change(_)) => {
                self.waiting.swap_remove(index);
                self.end_change(tag, canceled);
                self.revive();
            }
            // The last request stays: an engine without requests is not reaped, and others may wait
            // for its write-back.
            Some(SlotWork::Sync(_)) if !self.map_writer.is_running() || self.waiting.len() > 1 => {
                self.waiting.swap_remove(index);
                self.take_work(tag);
                self.complete(tag, canceled);
            }
            _ => return false,
        }
        true
    }
}

/// The bytes of the disk that a request is about.
fn bytes_of(request: &Request<'_>) -> ByteRange {
    request.op.range(total_len(request.segments) as u64)
}
