//! `crash explain`.

use std::process::ExitCode;

use block::LogKind;
use clap::builder::styling::Style;
use crash::{Explanation, LostWrite, MarkFact, RequestFact, StateName};
use serde_json::{Value, json};

use super::recording::{RecordingArguments, shown};
use crate::cmd::print;
use crate::cmd::table::TextTable;
use crate::exit::Exit;
use crate::log;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
/// Lost writes and ranges that a table lists.
const LISTED: usize = 50;

/// Examples of the command.
pub(super) const EXPLAIN_HELP: &str = "\
Requests have the numbers of their completion, from 0. A state has the name of
its power cut, after how many completions, and of what it lost: 1234-17 lost
write 17, and 1234-17-18.24+8 also sectors 24 to 31 of write 18.

Example:
  bulkhead crash explain disk.log --base base.img 1234-17";

/// Prints what a state lost.
pub(super) fn explain(
    recording: &RecordingArguments,
    state: &StateName,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let explained = match recording.open()?.explain(state) {
        Ok(explained) => explained,
        Err(error) => {
            log::print(format_args!("error: {}: {error}", shown(&recording.log)));
            return Ok(Exit::BadConfig.into());
        }
    };
    print(&if json { to_json(&explained) } else { text(&explained) })?;
    Ok(ExitCode::SUCCESS)
}

fn text(explained: &Explanation) -> String {
    let Explanation { name, lost, open, .. } = explained;
    let completions = if name.point == 1 { "completion" } else { "completions" };
    let writes = if *open == 1 { "write was" } else { "writes were" };
    let mut text = format!(
        "{BOLD}state {name}{BOLD:#}: the power is cut after {} {completions}; {open} {writes} not \
         durable\n\n",
        name.point
    );
    let request = |fact: &Option<RequestFact>| fact.as_ref().map(request);
    let mark = |fact: &Option<MarkFact>| fact.as_ref().map(mark);
    let facts = [
        ("mark before", mark(&explained.mark_before)),
        ("flush before", request(&explained.flush_before)),
        ("flush after", request(&explained.flush_after)),
        ("mark after", mark(&explained.mark_after)),
    ];
    for (what, fact) in facts {
        text += &format!("  {what:<12}  {}\n", fact.as_deref().unwrap_or("none"));
    }
    if lost.is_empty() {
        return text + "\n  No write is lost.\n";
    }
    let heading = ["LOST", "OFFSET", "BYTES", "ISSUED", "COMPLETED", "QUEUE", "POWER CUT", "PART"];
    let align = &[true, true, true, true, true, true, false, false];
    let mut table = TextTable::new(&heading, align);
    for lost in lost.iter().take(LISTED) {
        table.row(row(lost));
    }
    text = format!("{text}\n{}", table.render());
    let more = lost.len().saturating_sub(LISTED);
    if more > 0 { format!("{text}  and {more} more\n") } else { text }
}

fn row(lost: &LostWrite) -> Vec<String> {
    let write = &lost.write;
    let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), seconds);
    vec![
        write.number.to_string(),
        write.at.to_string(),
        write.len.to_string(),
        time(write.times.map(|(issued, _)| issued)),
        time(write.times.map(|(_, completed)| completed)),
        write.queue.to_string(),
        if lost.in_flight { "in flight" } else { "completed" }.to_owned(),
        part(lost),
    ]
}

/// The part of a write that is lost.
fn part(lost: &LostWrite) -> String {
    let kind = match lost.write.kind {
        LogKind::Write => "",
        other => kind(other),
    };
    let bytes: u64 = lost.lost.iter().map(|(_, len)| len).sum();
    if bytes == lost.write.len {
        return format!("whole {kind}").trim_end().to_owned();
    }
    let ranges = lost.lost.iter().take(LISTED).map(|(at, len)| format!("{at}+{len}"));
    let ranges: Vec<String> = ranges.collect();
    let more = if lost.lost.len() > LISTED { " ..." } else { "" };
    format!("{kind} {}{more}", ranges.join(" ")).trim_start().to_owned()
}

fn request(fact: &RequestFact) -> String {
    let time = fact.times.map_or_else(String::new, |(_, end)| format!(" at {}", seconds(end)));
    let failed = if fact.errno == 0 { "" } else { ", which failed" };
    format!("{} {}{time}{failed}", kind(fact.kind), fact.number)
}

fn mark(fact: &MarkFact) -> String {
    let time = fact.ns.map_or_else(String::new, |ns| format!(" at {}", seconds(ns)));
    format!("{:?} after {}{time}", sanitize(&fact.text), fact.after)
}

/// The name of a kind of request.
pub(super) fn kind(kind: LogKind) -> &'static str {
    match kind {
        LogKind::Write => "write",
        LogKind::Flush => "flush",
        LogKind::Discard => "discard",
        LogKind::Zero => "zeroing",
        LogKind::Mark => "mark",
        LogKind::End => "end",
    }
}

/// Nanoseconds as seconds.
pub(super) fn seconds(ns: u64) -> String {
    format!("{}.{:06} s", ns / 1_000_000_000, ns % 1_000_000_000 / 1000)
}

fn to_json(explained: &Explanation) -> String {
    let lost = |lost: &LostWrite| {
        let range = |(at, len): &(u64, u64)| json!({ "offset_bytes": at, "bytes": len });
        json!({
            "write": request_json(&lost.write),
            "lost": lost.lost.iter().map(range).collect::<Vec<Value>>(),
            "in_flight": lost.in_flight,
        })
    };
    let mark = |mark: &MarkFact| json!({ "text": mark.text, "after": mark.after, "ns": mark.ns });
    let answer = json!({
        "state": explained.name.to_string(),
        "completions": explained.name.point,
        "open_writes": explained.open,
        "flush_before": explained.flush_before.as_ref().map(request_json),
        "flush_after": explained.flush_after.as_ref().map(request_json),
        "mark_before": explained.mark_before.as_ref().map(mark),
        "mark_after": explained.mark_after.as_ref().map(mark),
        "lost": explained.lost.iter().map(lost).collect::<Vec<Value>>(),
    });
    format!("{answer:#}\n")
}

fn request_json(fact: &RequestFact) -> Value {
    json!({
        "number": fact.number,
        "kind": kind(fact.kind),
        "offset_bytes": fact.at,
        "bytes": fact.len,
        "fua": fact.fua,
        "queue": fact.queue,
        "errno": fact.errno,
        "issued_ns": fact.times.map(|(issued, _)| issued),
        "completed_ns": fact.times.map(|(_, completed)| completed),
    })
}
