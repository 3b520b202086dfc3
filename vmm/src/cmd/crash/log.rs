//! `crash log`.

use std::path::Path;
use std::process::ExitCode;

use block::{LogEntry, LogKind};
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::entries::{EntriesError, LogEntries};
use super::explain::{kind, seconds};
use super::recording::{require_log, shown};
use crate::cmd::print_part;
use crate::config::human_size;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
/// The kinds of entries, as they are shown.
const KINDS: [LogKind; 5] =
    [LogKind::Write, LogKind::Flush, LogKind::Discard, LogKind::Zero, LogKind::Mark];

/// Examples of the command.
pub(super) const LOG_HELP: &str = "\
Logs of dm-log-writes have neither times nor the order of issue.

Examples:
  bulkhead crash log disk.log
  bulkhead crash log disk.log --entries | less";

/// Prints what a log has.
pub(super) fn log(path: &Path, lists: bool, json: bool) -> anyhow::Result<ExitCode> {
    require_log(path)?;
    let failed = |error: EntriesError| anyhow::anyhow!("{}: {error}", shown(path));
    let mut entries = LogEntries::open(path).map_err(failed)?;
    let mut summary = LogSummary::new(&entries);
    if lists && !print_part(&list_head(json))? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut number = 0;
    while let Some((entry, text)) = entries.next().map_err(failed)? {
        if lists && !print_part(&row(number, &entry, &text, summary.unit, json))? {
            return Ok(ExitCode::SUCCESS);
        }
        summary.add(&entry, text);
        number += 1;
    }
    let result = match (lists, json) {
        (true, true) => "\n]\n".to_owned(),
        (true, false) => String::new(),
        (false, true) => summary.json(path),
        (false, false) => summary.text(path),
    };
    print_part(&result)?;
    Ok(ExitCode::SUCCESS)
}

/// Counts of the entries of a log.
struct LogSummary {
    unit: u64,
    /// Entries that the log says it has.
    counted: u64,
    entries: u64,
    /// Number and bytes of the entries of each kind.
    kinds: [(u64, u64); KINDS.len()],
    durable: u64,
    failed: u64,
    last_ns: Option<u64>,
    /// The reason of the end, if the log was closed.
    end: Option<String>,
    is_stamped: bool,
}

impl LogSummary {
    fn new(log: &LogEntries) -> Self {
        Self {
            unit: log.unit(),
            counted: log.counted(),
            entries: 0,
            kinds: Default::default(),
            durable: 0,
            failed: 0,
            last_ns: None,
            end: None,
            is_stamped: true,
        }
    }

    fn add(&mut self, entry: &LogEntry, text: String) {
        self.entries += 1;
        if entry.kind == LogKind::End {
            self.end = Some(text);
        }
        let place = KINDS.iter().position(|kind| *kind == entry.kind);
        if let Some((count, bytes)) = place.and_then(|place| self.kinds.get_mut(place)) {
            *count += 1;
            *bytes = bytes.saturating_add(entry.sectors.saturating_mul(self.unit));
        }
        self.durable += u64::from(entry.fua);
        self.is_stamped &= entry.stamp.is_some();
        if let Some(stamp) = entry.stamp {
            self.failed += u64::from(entry.kind != LogKind::End && stamp.errno != 0);
            self.last_ns = self.last_ns.max(Some(stamp.completed_ns));
        }
    }

    fn text(&self, path: &Path) -> String {
        let entries = self.entries;
        let mut text = format!("{BOLD}{}{BOLD:#}: {entries} entries\n\n", shown(path));
        let mut line = |name: &str, fact: String| {
            text += &format!("  {DIM}{name:<9}{DIM:#}  {fact}\n");
        };
        for (kind, (count, bytes)) in KINDS.iter().zip(self.kinds).filter(|(_, it)| it.0 > 0) {
            let (name, size) = (plural(*kind), human_size(bytes));
            let durable = format!(", {} durable when they completed", self.durable);
            let durable = if *kind == LogKind::Write { durable.as_str() } else { "" };
            let has_size = !matches!(kind, LogKind::Flush | LogKind::Mark);
            let size = if has_size { format!(", {size}{durable}") } else { String::new() };
            line(name, format!("{count}{size}"));
        }
        if self.failed > 0 {
            line("failed", self.failed.to_string());
        }
        if let Some(ns) = self.last_ns {
            line("duration", seconds(ns));
        }
        line("end", self.end_text());
        text
    }

    fn end_text(&self) -> String {
        match &self.end {
            Some(reason) => format!("closed: {}", sanitize(reason)),
            None if self.entries > 0 && !self.is_stamped => {
                "of another program, without times and the order of issue".to_owned()
            }
            None if self.entries == 0 => "not closed, and nothing was recorded".to_owned(),
            None => "not closed: what was in flight is missing".to_owned(),
        }
    }

    fn json(&self, path: &Path) -> String {
        let kinds = KINDS.iter().zip(self.kinds).map(|(kind, (count, bytes))| {
            (plural(*kind).to_owned(), json!({ "count": count, "bytes": bytes }))
        });
        let answer = json!({
            "log": path.display().to_string(),
            "entries": self.entries,
            "entries_counted": self.counted,
            "sector_bytes": self.unit,
            "kinds": kinds.collect::<serde_json::Map<String, Value>>(),
            "durable_writes": self.durable,
            "failed": self.failed,
            "duration_ns": self.last_ns,
            "closed": self.end,
        });
        format!("{answer:#}\n")
    }
}

fn plural(kind: LogKind) -> &'static str {
    match kind {
        LogKind::Write => "writes",
        LogKind::Flush => "flushes",
        LogKind::Discard => "discards",
        LogKind::Zero => "zeroings",
        LogKind::Mark => "marks",
        LogKind::End => "ends",
    }
}

fn list_head(json: bool) -> String {
    if json {
        return "[".to_owned();
    }
    format!(
        "{DIM}{:>9}  {:>9}  {:<7}  {:>14}  {:>10}  {:>13}  {:>13}  {:>5}  {}{DIM:#}\n",
        "ENTRY", "REQUEST", "KIND", "OFFSET", "BYTES", "ISSUED", "COMPLETED", "QUEUE", "NOTE"
    )
}

fn row(number: u64, entry: &LogEntry, text: &str, unit: u64, json: bool) -> String {
    let (offset, bytes) = (entry.sector.saturating_mul(unit), entry.sectors.saturating_mul(unit));
    let stamp = entry.stamp;
    if json {
        let comma = if number == 0 { "\n" } else { ",\n" };
        let entry = json!({
            "kind": kind(entry.kind),
            "offset_bytes": offset,
            "bytes": bytes,
            "fua": entry.fua,
            "preflush": entry.preflush,
            "text": (entry.text > 0).then_some(text),
            "issue": stamp.map(|stamp| stamp.issue),
            "issued_after": stamp.map(|stamp| stamp.issued_after),
            "completion": stamp.map(|stamp| stamp.completion),
            "issued_ns": stamp.map(|stamp| stamp.issued_ns),
            "completed_ns": stamp.map(|stamp| stamp.completed_ns),
            "queue": stamp.map(|stamp| stamp.queue),
            "errno": stamp.map(|stamp| stamp.errno),
        });
        return format!("{comma}  {entry}");
    }
    let or_dash = |fact: Option<String>| fact.unwrap_or_else(|| "-".to_owned());
    let is_request = !matches!(entry.kind, LogKind::Mark | LogKind::End);
    let request = stamp.filter(|_| is_request).map(|stamp| stamp.completion.to_string());
    let mut notes = Vec::new();
    notes.extend(entry.preflush.then(|| "flush before".to_owned()));
    notes.extend(entry.fua.then(|| "FUA".to_owned()));
    let errno = stamp.map_or(0, |stamp| stamp.errno);
    notes.extend((errno != 0).then(|| format!("failed with errno {errno}")));
    notes.extend((!is_request).then(|| sanitize(text)));
    let line = format!(
        "{number:>9}  {:>9}  {:<7}  {offset:>14}  {bytes:>10}  {:>13}  {:>13}  {:>5}  {}",
        or_dash(request),
        kind(entry.kind),
        or_dash(stamp.map(|stamp| seconds(stamp.issued_ns))),
        or_dash(stamp.map(|stamp| seconds(stamp.completed_ns))),
        or_dash(stamp.map(|stamp| stamp.queue.to_string())),
        notes.join(", "),
    );
    format!("{}\n", line.trim_end())
}
