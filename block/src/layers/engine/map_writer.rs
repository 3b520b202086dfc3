//! A write-back of the map by one engine: windows of dirty pages, each after a flush of the data
//! that its bits tell of.

use std::io;
use std::ops::Range;

use super::super::header::Header;
use super::super::levels::Levels;
use super::super::map_sync::Started;
use super::super::unit::{BLOCK, BLOCK_BYTES};
use crate::kick::Kick;
use crate::page::LentPages;
use crate::{ByteOffset, Completion, Durability, Operation, Segments};

/// Most pages of a window: the map of 8 GiB.
const WINDOW: usize = 64;

/// See the module's documentation. Runs from a start to the end or until it is abandoned.
#[derive(Debug, Default)]
pub(super) struct MapWriter {
    /// The write-back that runs.
    started: Option<Started>,
    /// The data was flushed for the requests that wait.
    has_flushed: bool,
    /// The pages that are being written.
    window: Range<usize>,
    /// Memory for a window, once it was needed.
    pages: Option<LentPages>,
    is_flushing: bool,
}

impl MapWriter {
    /// Starts a write-back and returns its first request of the top. `None` if another one runs,
    /// or nothing is to be done.
    pub(super) fn start(
        &mut self,
        levels: &Levels,
        by: &Kick,
        tag: u16,
        segments: &mut Segments,
    ) -> Option<Operation> {
        self.started = Some(levels.sync.start(by)?);
        (self.has_flushed, self.window) = (false, 0..0);
        self.next(levels, tag, segments)
    }

    /// Whether a write-back of this engine runs.
    pub(super) fn is_running(&self) -> bool {
        self.started.is_some()
    }

    /// The next request of the top; `None` after the last one, when the write-back has ended.
    fn next(&mut self, levels: &Levels, tag: u16, segments: &mut Segments) -> Option<Operation> {
        let map = &levels.top.map;
        self.window = match map.next_dirty(self.window.end) {
            Some(first) => {
                let end = map.pages().min(first + WINDOW);
                let last = (first..end).rev().find(|page| map.next_dirty(*page) == Some(*page));
                first..last.unwrap_or(first) + 1
            }
            None => self.window.end..self.window.end,
        };
        let pages = self.pages.get_or_insert_with(|| LentPages::zeroed(WINDOW * BLOCK_BYTES));
        if let Some(bytes) = pages.bytes() {
            for (page, bytes) in self.window.clone().zip(bytes.chunks_mut(BLOCK_BYTES)) {
                map.clean(page);
                map.store(page, bytes);
            }
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
        let at = ByteOffset(Header::map_at() + self.window.start as u64 * BLOCK);
        Some(Operation::Write { at, durability: Durability::Durable })
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
            Err(error) => {
                self.undo(levels);
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.end(levels, &Err(io::Error::from_raw_os_error(errno)));
                None
            }
        }
    }

    fn end(&mut self, levels: &Levels, result: &io::Result<()>) {
        if let Some(started) = self.started.take() {
            levels.sync.end(&started, result);
        }
    }

    /// Gives up the write-back that runs, when the top's engine has ended.
    pub(super) fn abandon(&mut self, levels: &Levels, canceled: &Completion) {
        if let Some(pages) = &mut self.pages {
            pages.take_back(canceled);
        }
        if let Some(started) = self.started.take() {
            self.undo(levels);
            levels.sync.abandon(&started);
        }
    }

    /// Leaves the window, and the flush of its data, to another write-back.
    fn undo(&self, levels: &Levels) {
        levels.restore_volatile();
        self.window.clone().for_each(|page| levels.top.map.soil(page));
    }
}
