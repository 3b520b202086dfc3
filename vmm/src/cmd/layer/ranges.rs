//! Ranges of a layered disk, as they are found: the memory is that of some ranges.

use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use block::{LayerPiece, OpenError};
use clap::builder::styling::Style;
use serde_json::json;

use super::shown::shown;
use crate::cmd::print_part;
use crate::cmd::progress::ProgressLine;
use crate::config::human_size;
use crate::host_query::HostQuery;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Time limit of one answer: the map of a large layer, or a read that waits for a machine's I/O.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);
/// Answers that are not printed yet.
const AHEAD: usize = 4;
/// Most ranges of an answer.
const PIECES: usize = 1024;
/// Longest time between two answers while ranges are found.
const PERIOD: Duration = Duration::from_millis(100);

/// The title of the ranges.
#[derive(Clone, Debug)]
pub(super) struct RangesTitle {
    /// The layer.
    pub(super) path: PathBuf,
    /// Its description.
    pub(super) what: String,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// The levels that the ranges may have, from the top down.
    pub(super) levels: Vec<PathBuf>,
    /// Bytes to read, if any.
    pub(super) to_read: u64,
}

/// A part of the answer.
enum RangesPart {
    Title(RangesTitle),
    Pieces(Vec<LayerPiece>),
    Read(u64),
    Failed(OpenError),
}

/// Where a query sends the ranges that it finds.
pub(super) struct RangesSender<'s> {
    answers: &'s SyncSender<RangesPart>,
    pieces: Vec<LayerPiece>,
    sent: Instant,
}

impl RangesSender<'_> {
    pub(super) fn title(&mut self, title: RangesTitle) {
        self.send(RangesPart::Title(title));
    }

    pub(super) fn piece(&mut self, piece: LayerPiece) {
        self.pieces.push(piece);
        if self.pieces.len() == PIECES || self.sent.elapsed() >= PERIOD {
            self.flush();
        }
    }

    /// Reports bytes that were read.
    pub(super) fn read(&mut self, bytes: u64) {
        self.send(RangesPart::Read(bytes));
    }

    fn flush(&mut self) {
        let pieces = std::mem::take(&mut self.pieces);
        self.send(RangesPart::Pieces(pieces));
        self.sent = Instant::now();
    }

    fn send(&self, part: RangesPart) {
        // Without a receiver the command has ended, and its threads end with it.
        let _ = self.answers.send(part);
    }
}

/// Prints the ranges of a query.
///
/// # Errors
///
/// That of the query; it did not answer; or the result cannot be written.
pub(super) fn print_ranges(
    path: &std::path::Path,
    json: bool,
    query: impl FnOnce(&mut RangesSender<'_>) -> Result<(), OpenError> + Send + 'static,
) -> anyhow::Result<()> {
    let mut parts = HostQuery::bounded(READ_LIMIT, AHEAD, move |answers| {
        let mut sender = RangesSender { answers, pieces: Vec::new(), sent: Instant::now() };
        match query(&mut sender) {
            Ok(()) => sender.flush(),
            Err(error) => sender.send(RangesPart::Failed(error)),
        }
    });
    let mut table: Option<RangesTable> = None;
    let mut progress = None;
    let unknown = |error| anyhow::anyhow!("{}: could not be learned: {error}", shown(path));
    while let Some(part) = parts.next().map_err(unknown)? {
        let text = match part {
            RangesPart::Failed(error) => return Err(anyhow::anyhow!("{error}")),
            RangesPart::Title(title) => {
                progress =
                    (title.to_read > 0).then(|| ProgressLine::new("comparing", title.to_read));
                let (new, text) = RangesTable::start(&title, json);
                table = Some(new);
                text
            }
            RangesPart::Read(bytes) => {
                progress.iter_mut().for_each(|progress| progress.advance(bytes));
                continue;
            }
            RangesPart::Pieces(pieces) => {
                let row = |piece| table.as_mut().map_or_else(String::new, |it| it.row(piece));
                pieces.iter().map(row).collect()
            }
        };
        if !text.is_empty() && !print_part(&text)? {
            return Ok(());
        }
    }
    drop(progress);
    print_part(&table.map_or_else(String::new, |table| table.end())).map(drop)
}

/// The text of the ranges, as a table or as JSON.
struct RangesTable {
    json: bool,
    /// Widths of the columns of numbers.
    width: usize,
    ranges: u64,
    data: u64,
    zeroes: u64,
}

impl RangesTable {
    /// The table and its head.
    fn start(title: &RangesTitle, json: bool) -> (Self, String) {
        let width = title.size.to_string().len().max("START".len());
        let table = Self { json, width, ranges: 0, data: 0, zeroes: 0 };
        let head = if json { json_head(title) } else { text_head(title, width) };
        (table, head)
    }

    fn row(&mut self, piece: &LayerPiece) -> String {
        let LayerPiece { range, level, data } = *piece;
        let is_first = self.ranges == 0;
        self.ranges += 1;
        if data {
            self.data += range.len;
        } else {
            self.zeroes += range.len;
        }
        if self.json {
            let comma = if is_first { "\n" } else { ",\n" };
            let (start, bytes) = (range.start.0, range.len);
            let range = json!({ "start": start, "bytes": bytes, "data": data, "level": level });
            return format!("{comma}    {range}");
        }
        let width = self.width;
        let level = level.map_or_else(|| "-".to_owned(), |level| level.to_string());
        let content = if data { "data" } else { "zeroes" };
        format!("  {:>width$}  {:>width$}  {level:>5}  {content}\n", range.start.0, range.len)
    }

    fn end(&self) -> String {
        if self.json {
            let close = if self.ranges == 0 { "" } else { "\n  " };
            return format!("{close}]\n}}\n");
        }
        let ranges = if self.ranges == 1 { "range" } else { "ranges" };
        let (data, zeroes) = (human_size(self.data), human_size(self.zeroes));
        format!("\n  {} {ranges}: {data} of data, {zeroes} of zeroes\n", self.ranges)
    }
}

fn text_head(title: &RangesTitle, width: usize) -> String {
    let mut text = format!("{BOLD}{}{BOLD:#}: {}\n\n", shown(&title.path), title.what);
    text += &format!("  {DIM}LEVEL  PATH{DIM:#}\n");
    for (level, path) in title.levels.iter().enumerate() {
        text += &format!("  {level:>5}  {}\n", shown(path));
    }
    let (start, bytes, level) = ("START", "BYTES", "LEVEL");
    text + &format!("\n  {DIM}{start:>width$}  {bytes:>width$}  {level:>5}  CONTENT{DIM:#}\n")
}

fn json_head(title: &RangesTitle) -> String {
    let levels: Vec<_> = title.levels.iter().map(|path| path.display().to_string()).collect();
    format!(
        "{{\n  \"size_bytes\": {},\n  \"levels\": {},\n  \"ranges\": [",
        title.size,
        json!(levels)
    )
}
