//! A write-back of a map by one engine: windows of dirty pages. Those of the map are durable, each
//! after a flush of the data that its bits tell of; those of the unflushed map need neither.

use std::io;
use std::ops::Range;

use super::super::header::Header;
use super::super::levels::Levels;
use super::super::map::LayerMap;
use super::super::map_sync::{MapSync, Started};
use super::super::unit::{BLOCK, BLOCK_BYTES};
use crate::kick::Kick;
use crate::page::LentPages;
use crate::{ByteOffset, Completion, Durability, Operation, Segments};

/// Most pages of a window of the map, which has that of 8 GiB.
const WINDOW: usize = 64;
/// Most pages of a window of the unflushed map: few are dirty, those of the requests in flight.
const UNFLUSHED_WINDOW: usize = 8;

/// One of the maps in the file of the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapKind {
    /// The map.
    Flushed,
    /// The unflushed map.
    Unflushed,
}

/// A map in the file of the top.
struct FileMap<'l> {
    map: &'l LayerMap,
    sync: &'l MapSync,
    /// Position in the file.
    at: u64,
}

/// See the module's documentation. Runs from a start to the end or until it is abandoned.
#[derive(Debug)]
pub(super) struct MapWriter {
    kind: MapKind,
    /// The write-back that runs.
    started: Option<Started>,
    /// The data was flushed for the requests that wait.
    has_flushed: bool,
    /// The pages that are being written.
    window: Range<usize>,
    /// Memory for a window, once it was needed.
    pages: Option<LentPages>,
    is_flushing: bool,
    /// The cancelled request for which it gives way to other engines if it would be held for space.
    gives_way_for: Option<u16>,
}

impl MapKind {
    /// The map of the top; `None` if it has none of this kind.
    fn of(self, levels: &Levels) -> Option<FileMap<'_>> {
        let top = &levels.top;
        match self {
            Self::Flushed => {
                Some(FileMap { map: &top.map, sync: &levels.sync, at: Header::map_at() })
            }
            Self::Unflushed => {
                let unflushed = top.unflushed.as_ref()?;
                Some(FileMap { map: &unflushed.map, sync: &unflushed.sync, at: unflushed.at })
            }
        }
    }

    /// The write-backs of the map.
    pub(super) fn sync(self, levels: &Levels) -> Option<&MapSync> {
        self.of(levels).map(|map| map.sync)
    }

    fn window(self) -> usize {
        match self {
            Self::Flushed => WINDOW,
            Self::Unflushed => UNFLUSHED_WINDOW,
        }
    }
}

impl MapWriter {
    /// One that has not been started.
    pub(super) fn new(kind: MapKind) -> Self {
        let (started, has_flushed, is_flushing) = (None, false, false);
        let (window, pages, gives_way_for) = (0..0, None, None);
        Self { kind, started, has_flushed, window, pages, is_flushing, gives_way_for }
    }

    /// Starts a write-back and returns its first request of the top. `None` if another one runs,
    /// or nothing is to be done.
    pub(super) fn start(
        &mut self,
        levels: &Levels,
        by: &Kick,
        tag: u16,
        segments: &mut Segments,
    ) -> Option<Operation> {
        self.started = Some(self.kind.sync(levels)?.start(by)?);
        (self.has_flushed, self.window, self.gives_way_for) = (false, 0..0, None);
        self.next(levels, tag, segments)
    }

    /// Gives way for this request from now on.
    pub(super) fn give_way_for(&mut self, tag: u16) {
        self.gives_way_for = Some(tag);
    }

    /// The request that it gives way for.
    pub(super) fn gives_way_for(&self) -> Option<u16> {
        self.gives_way_for
    }

    /// Whether a write-back of this engine runs.
    pub(super) fn is_running(&self) -> bool {
        self.started.is_some()
    }

    /// The next request of the top; `None` after the last one, when the write-back has ended.
    fn next(&mut self, levels: &Levels, tag: u16, segments: &mut Segments) -> Option<Operation> {
        let FileMap { map, .. } = self.kind.of(levels)?;
        self.window = match map.next_dirty(self.window.end) {
            Some(first) => {
                let end = map.pages().min(first + self.kind.window());
                let last = (first..end).rev().find(|page| map.next_dirty(*page) == Some(*page));
                first..last.unwrap_or(first) + 1
            }
            None => self.window.end..self.window.end,
        };
        let window_bytes = self.kind.window() * BLOCK_BYTES;
        let pages = self.pages.get_or_insert_with(|| LentPages::zeroed(window_bytes));
        if let Some(bytes) = pages.bytes() {
            for (page, bytes) in self.window.clone().zip(bytes.chunks_mut(BLOCK_BYTES)) {
                map.clean(page);
                map.store(page, bytes);
            }
        }
        if self.kind == MapKind::Unflushed {
            return self.write(levels, tag, segments);
        }
        // The bits in the window tell of data that was complete before now.
        let is_volatile = levels.take_volatile();
        let is_wanted = self.started.as_ref().is_some_and(|started| started.wants_flush);
        if is_volatile || (is_wanted && !self.has_flushed) {
            (self.has_flushed, self.is_flushing) = (true, true);
            return Some(Operation::Flush);
        }
        self.write(levels, tag, segments)
    }

    /// The request that writes the window.
    fn write(&mut self, levels: &Levels, tag: u16, segments: &mut Segments) -> Option<Operation> {
        if self.window.is_empty() {
            self.end(levels, &Ok(()));
            return None;
        }
        self.is_flushing = false;
        let bytes = self.window.len() * BLOCK_BYTES;
        segments.clear();
        segments.extend(self.pages.as_mut().and_then(|pages| pages.lend(tag, 0, bytes)));
        let at = ByteOffset(self.kind.of(levels)?.at + self.window.start as u64 * BLOCK);
        let durability = match self.kind {
            MapKind::Flushed => Durability::Durable,
            MapKind::Unflushed => Durability::Volatile,
        };
        Some(Operation::Write { at, durability })
    }

    /// Handles a completion; returns the next request of the top, `None` if the write-back has
    /// ended.
    pub(super) fn handle(
        &mut self,
        levels: &Levels,
        completion: &Completion,
        segments: &mut Segments,
    ) -> Option<Operation> {
        if let Some(pages) = &mut self.pages {
            pages.take_back(completion);
        }
        match &completion.result {
            Ok(()) if self.is_flushing => self.write(levels, completion.tag, segments),
            Ok(()) => self.next(levels, completion.tag, segments),
            // No failure: another engine, or the next request of this one, repeats it.
            Err(error) if self.gives_way_for.is_some() && is_canceled_hold(error) => {
                self.give_up(levels);
                None
            }
            Err(error) => {
                self.undo(levels);
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.end(levels, &Err(io::Error::from_raw_os_error(errno)));
                None
            }
        }
    }

    fn end(&mut self, levels: &Levels, result: &io::Result<()>) {
        if let (Some(started), Some(sync)) = (self.started.take(), self.kind.sync(levels)) {
            sync.end(&started, result);
        }
    }

    /// Gives up the write-back that runs, when the top's engine has ended.
    pub(super) fn abandon(&mut self, levels: &Levels, canceled: &Completion) {
        if let Some(pages) = &mut self.pages {
            pages.take_back(canceled);
        }
        self.give_up(levels);
    }

    fn give_up(&mut self, levels: &Levels) {
        if let (Some(started), Some(sync)) = (self.started.take(), self.kind.sync(levels)) {
            self.undo(levels);
            sync.abandon(&started);
        }
    }

    /// Leaves the window, and the flush of its data, to another write-back.
    fn undo(&self, levels: &Levels) {
        if self.kind == MapKind::Flushed {
            levels.restore_volatile();
        }
        if let Some(FileMap { map, .. }) = self.kind.of(levels) {
            self.window.clone().for_each(|page| map.soil(page));
        }
    }
}

/// Whether a request was held for space, or would have been, and was cancelled.
fn is_canceled_hold(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::ENOSPC))
}
