//! The steps of the requests that are more than forwarded.

use std::io;

use super::super::levels::Answerer;
use super::super::map::touched;
use super::super::unit::BLOCK;
use super::cancel::canceled;
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
        if self.levels.is_held() {
            return self.keep(request);
        }
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
                    if Change::may_be_merged(op, range) {
                        return self.merge_write(request, range);
                    }
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
        // An ephemeral top is never durable.
        self.levels.top.budget.is_some()
            || self.levels.sync.is_clean(|| self.levels.top.map.is_dirty(first, end))
    }

    /// Notes what is to be done when the tag's request of a level completes.
    pub(super) fn begin(&mut self, tag: u16, work: SlotWork) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            (slot.work, slot.is_canceled, slot.is_ending) = (work, false, false);
            self.stepping += 1;
        }
    }

    /// Keeps the segments of a request that is done step by step.
    pub(super) fn keep_segments(&mut self, request: &mut Request<'_>) {
        if let Some(slot) = self.slots.get_mut(usize::from(request.tag)) {
            std::mem::swap(&mut slot.segments, request.segments);
        }
    }

    /// Takes the work of a tag, which it no longer has.
    pub(super) fn take_work(&mut self, tag: u16) -> SlotWork {
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
    pub(super) fn push_part(&mut self, level: usize, tag: u16, op: Operation) {
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
        // Else a later write of these blocks would need no budget.
        let is_discard = matches!(request.op, Operation::Discard { .. });
        if is_discard && self.levels.top.budget.is_some() {
            return self.forward(0, request);
        }
        self.keep_segments(&mut request);
        self.begin(request.tag, SlotWork::Change(Change::new(request.op, range)));
        self.claim(request.tag);
    }

    /// Claims the blocks of a change, which begins when the claim is granted.
    pub(super) fn claim(&mut self, tag: u16) {
        let Some(Slot { work: SlotWork::Change(change), .. }) =
            self.slots.get_mut(usize::from(tag))
        else {
            return;
        };
        let (first, end) = change.touched();
        let bytes = first * BLOCK..end * BLOCK;
        let (claim, is_granted) = self.levels.first_writes.claim(&self.kick, &bytes, false);
        change.claim = Some(claim);
        if is_granted {
            self.change_on(tag);
        } else {
            self.waiting.push(tag);
        }
    }

    /// Does the next step of a change that has its claim.
    fn change_on(&mut self, tag: u16) {
        let Self { slots, levels, part, .. } = self;
        let Some(Slot { work: SlotWork::Change(change), segments, rider, .. }) =
            slots.get_mut(usize::from(tag))
        else {
            return;
        };
        let (first, end) = change.touched();
        let is_new = matches!(change.stage, ChangeStage::Claiming);
        // MergedWrites writes without space for all are made one by one.
        if is_new && !levels.top.take_blocks(first, end, rider.is_none()) {
            return self.end_change(tag, Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        match change.next_copy(|block| levels.top.map.is_set(block)) {
            Some(block) => {
                let copy = CopyUp::new(block, levels.capacity());
                self.copy_on(tag, Box::new(copy));
            }
            None => {
                change.stage = ChangeStage::Changing;
                let place = |at: ByteOffset| ByteOffset(levels.place(0, at.0));
                let op = moved(change.op, place);
                if rider.is_some() {
                    self.merge_segments(tag);
                } else {
                    part.clear();
                    std::mem::swap(part, segments);
                }
                self.push_part(0, tag, op);
            }
        }
    }

    /// Reads the next piece of a block that is copied, or writes the block.
    fn copy_on(&mut self, tag: u16, mut copy: Box<CopyUp>) {
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
        if let Some(kind) = self.map_of_tag(tag) {
            return self.handle_map_writer(kind, &completion);
        }
        let slot = self.slots.get_mut(usize::from(tag));
        if let Some(Slot { work: SlotWork::Change(change), .. }) = slot {
            if let ChangeStage::Copying(copy) = &mut change.stage {
                copy.pages.take_back(&completion);
            }
            return self.handle_change(tag, completion.result);
        }
        let is_canceled = slot.is_some_and(|slot| slot.is_canceled);
        match (self.take_work(tag), completion.result) {
            (SlotWork::Durable { .. }, Ok(())) if is_canceled => {
                self.complete(tag, Err(canceled()));
            }
            (SlotWork::Read(cursor), Ok(())) => self.read_on(tag, cursor),
            (SlotWork::Durable { first, end }, Ok(())) if !self.is_map_clean(first, end) => {
                self.join_sync(tag, false);
            }
            (_, result) => self.complete(tag, result),
        }
    }

    fn handle_change(&mut self, tag: u16, result: io::Result<()>) {
        let Some(Slot { work: SlotWork::Change(change), is_canceled, .. }) =
            self.slots.get_mut(usize::from(tag))
        else {
            return;
        };
        let is_canceled = *is_canceled;
        match (std::mem::replace(&mut change.stage, ChangeStage::Changing), result) {
            (ChangeStage::Copying(copy), Ok(())) => {
                if copy.is_written {
                    change.copied = copy.block + 1;
                }
                match copy.is_written {
                    _ if is_canceled => self.end_change(tag, Err(canceled())),
                    true => self.change_on(tag),
                    false => self.copy_on(tag, copy),
                }
            }
            (_, Ok(())) => self.note_change(tag),
            (_, failed) => self.end_change(tag, failed),
        }
    }

    /// Ends a change: the top answers for its blocks if it was made.
    pub(super) fn end_change(&mut self, tag: u16, result: io::Result<()>) {
        let is_canceled = self.slots.get(usize::from(tag)).is_some_and(|slot| slot.is_canceled);
        let SlotWork::Change(change) = self.take_work(tag) else { return };
        let (first, end) = change.touched();
        let is_durable = change.op.is_durable();
        if result.is_ok() {
            let (first, end) = change.answered(self.levels.top.discard);
            // Copies are not.
            self.levels.set(first, end, is_durable && change.copied == 0);
        }
        if !matches!(change.stage, ChangeStage::Claiming) {
            self.levels.top.give_back_blocks(first, end);
        }
        if let Some(claim) = change.claim {
            self.levels.first_writes.release(&self.kick, claim);
        }
        if result.is_ok() && is_durable && !self.is_map_clean(first, end) {
            if !is_canceled {
                return self.join_sync(tag, false);
            }
            return self.complete(tag, Err(canceled()));
        }
        self.complete_change(tag, change.op, result);
    }

    /// Resumes the requests that need not wait any longer, and starts a write-back of the map if a
    /// request waits for one and none runs.
    pub(super) fn revive(&mut self) {
        // A request that is started may be the next to wait: the pass that runs reaches it.
        if std::mem::replace(&mut self.is_reviving, true) {
            return;
        }
        let mut index = 0;
        while index < self.waiting.len() {
            let tag = self.waiting.swap_remove(index);
            let has_claim = self.slots.get(usize::from(tag)).is_some_and(Slot::is_change);
            if !self.revive_one(tag) {
                self.waiting.push(tag);
                let last = self.waiting.len() - 1;
                self.waiting.swap(index, last);
                index += 1;
            } else if has_claim {
                // It may be complete already, and its claim be granted to another request.
                index = 0;
            }
        }
        self.is_reviving = false;
    }

    /// Whether the request no longer waits.
    fn revive_one(&mut self, tag: u16) -> bool {
        let Some(slot) = self.slots.get(usize::from(tag)) else { return true };
        match &slot.work {
            SlotWork::Change(change) => match (&change.stage, &change.claim) {
                (ChangeStage::Noting(ticket), _) => self.revive_noted(tag, *ticket),
                (_, Some(claim)) if self.levels.first_writes.is_granted(claim) => {
                    self.change_on(tag);
                    true
                }
                _ => false,
            },
            SlotWork::Sync(ticket) => self.revive_synced(tag, *ticket),
            SlotWork::Held(_) => self.start_kept(tag),
            SlotWork::Forwarded
            | SlotWork::Read(_)
            | SlotWork::Durable { .. }
            | SlotWork::Rider { .. } => true,
        }
    }
}

/// The bytes of the disk that a request is about.
fn bytes_of(request: &Request<'_>) -> ByteRange {
    request.op.range(total_len(request.segments) as u64)
}
