//! The write-backs of the maps by an engine, and the requests that wait for them.

use std::io;

use super::super::levels::Levels;
use super::super::map_sync::Ticket;
use super::LayerEngine;
use super::map_writer::{MapKind, MapWriter};
use super::slot::{ChangeStage, Slot, SlotWork};
use crate::{Completion, Operation, Segments};

impl LayerEngine {
    /// The tag of a map's write-back.
    pub(super) fn tag_of_map(&self, kind: MapKind) -> u16 {
        match kind {
            MapKind::Flushed => self.map_tag,
            MapKind::Unflushed => self.map_tag.saturating_sub(1),
        }
    }

    /// The map whose write-back has the tag.
    pub(super) fn map_of_tag(&self, tag: u16) -> Option<MapKind> {
        let mut kinds = [MapKind::Flushed, MapKind::Unflushed].into_iter();
        kinds.find(|kind| self.tag_of_map(*kind) == tag)
    }

    pub(super) fn writer_and_levels(&mut self, kind: MapKind) -> (&mut MapWriter, &Levels) {
        let writer = match kind {
            MapKind::Flushed => &mut self.map_writer,
            MapKind::Unflushed => &mut self.unflushed_writer,
        };
        (writer, &self.levels)
    }

    /// Number of write-backs of this engine that run.
    pub(super) fn running_writers(&self) -> usize {
        let writers = [&self.map_writer, &self.unflushed_writer];
        writers.into_iter().filter(|writer| writer.is_running()).count()
    }

    pub(super) fn handle_map_writer(&mut self, kind: MapKind, completion: &Completion) {
        let mut segments = std::mem::take(&mut self.part);
        let (writer, levels) = self.writer_and_levels(kind);
        let gives_way = writer.gives_way_for();
        let op = writer.handle(levels, completion, &mut segments);
        let is_running = writer.is_running();
        self.part = segments;
        self.write_map(kind, op);
        match gives_way {
            Some(_) if is_running => self.cancel_map_write(),
            Some(tag) => self.end_given_way(tag),
            None => {}
        }
    }

    /// Pushes the next request of a map's write-back.
    fn write_map(&mut self, kind: MapKind, op: Option<Operation>) {
        if let Some(op) = op {
            self.push_part(0, self.tag_of_map(kind), op);
        } else {
            self.stepping -= 1;
        }
    }

    /// The result of a write-back that a request waits for. Starts one if none runs.
    fn result_of_map(&mut self, kind: MapKind, ticket: Ticket) -> Option<io::Result<()>> {
        let result = || kind.sync(&self.levels)?.result(ticket);
        if let Some(result) = result() {
            return Some(result);
        }
        let mut segments = std::mem::take(&mut self.part);
        let op = self.start_map_writer(kind, &mut segments);
        self.part = segments;
        if op.is_some() {
            self.stepping += 1;
            self.write_map(kind, op);
            return None;
        }
        // There may have been nothing to do.
        kind.sync(&self.levels)?.result(ticket)
    }

    /// Starts a write-back, unless one runs or there is nothing to do.
    fn start_map_writer(&mut self, kind: MapKind, segments: &mut Segments) -> Option<Operation> {
        let tag = self.tag_of_map(kind);
        let Self { map_writer, unflushed_writer, levels, kick, .. } = self;
        let writer = match kind {
            MapKind::Flushed => map_writer,
            MapKind::Unflushed => unflushed_writer,
        };
        if writer.is_running() { None } else { writer.start(levels, kick, tag, segments) }
    }

    pub(super) fn revive_synced(&mut self, tag: u16, ticket: Ticket) -> bool {
        let Some(result) = self.result_of_map(MapKind::Flushed, ticket) else { return false };
        self.take_work(tag);
        self.complete(tag, result);
        true
    }

    /// Notes the blocks of a change that was made in the unflushed map, and ends the change when
    /// the file has them. The claim stays until then: a later write of these blocks would complete
    /// without a note, although it needs this one.
    pub(super) fn note_change(&mut self, tag: u16) {
        let Self { slots, levels, kick, waiting, .. } = self;
        let slot = slots.get_mut(usize::from(tag));
        let Some(Slot { work: SlotWork::Change(change), .. }) = slot else { return };
        let (first, end) = change.answered(levels.top.discard);
        let Some(unflushed) = levels.top.unflushed.as_ref().filter(|_| first < end) else {
            return self.end_change(tag, Ok(()));
        };
        // Not before the data: a kill between both would let the bit tell of other data.
        unflushed.map.set(first, end);
        if unflushed.sync.is_clean(|| unflushed.map.is_dirty(first, end)) {
            return self.end_change(tag, Ok(()));
        }
        change.stage = ChangeStage::Noting(unflushed.sync.join(kick, false));
        waiting.push(tag);
    }

    pub(super) fn revive_noted(&mut self, tag: u16, ticket: Ticket) -> bool {
        let result = self.result_of_map(MapKind::Unflushed, ticket);
        result.map(|result| self.end_change(tag, result)).is_some()
    }
}
