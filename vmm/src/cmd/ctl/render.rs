//! Answers of the control socket as text for people. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::builder::styling::{AnsiColor, Style};

use crate::cmd::table::TextTable;
use crate::config::human_size;
use crate::control::api::model::{
    Discards, Disk, Ephemeral, Event, Events, Latency, RunState, Stats, Status,
};
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// The machine and its disks.
pub(crate) fn status(status: &Status) -> String {
    let Status { version, pid, .. } = status;
    let uptime = duration(Duration::from_millis(status.uptime_ms));
    let (style, state) = match status.state {
        RunState::Running => (BOLD, "running"),
        RunState::Paused => (WARNING, "paused"),
    };
    let machine = match (status.vcpus, status.memory_bytes) {
        (Some(vcpus), Some(memory)) => {
            let processors = if vcpus == 1 { "vCPU" } else { "vCPUs" };
            format!("{vcpus} {processors}, {} of memory", human_size(memory))
        }
        _ => "serves a disk".to_owned(),
    };
    format!(
        "{style}{state}{style:#}, started {uptime} ago: {machine}; \
         bulkhead {version}, process {pid}\n\n{}",
        disks(&status.disks)
    )
}

/// All disks, one line each, and their warnings.
pub(super) fn disks(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "  no disks\n".to_owned();
    }
    let heading = [
        "DISK",
        "SIZE",
        "ACCESS",
        "CACHE",
        "WRITE CACHE",
        "ENGINE",
        "IN FLIGHT",
        "READS",
        "WRITES",
        "PATH",
    ];
    let right = &[false, true, false, false, false, false, true, true, true, false];
    let mut table = TextTable::new(&heading, right);
    for disk in disks {
        table.row(vec![
            sanitize(&disk.id),
            human_size(disk.size_bytes),
            if disk.readonly { "ro" } else { "rw" }.to_owned(),
            disk.cache.clone(),
            if disk.write_cache { "on" } else { "off" }.to_owned(),
            disk.engine.name.clone(),
            disk.total.in_flight.to_string(),
            grouped(requests(disk, "read")),
            grouped(requests(disk, "write")),
            sanitize(&disk.path) + &disk.ephemeral.as_ref().map_or_else(String::new, changes),
        ]);
    }
    let warnings: String = disks.iter().map(warnings).collect();
    table.render() + &if warnings.is_empty() { warnings } else { format!("\n{warnings}") }
}

fn changes(Ephemeral { used_bytes, limit_bytes, .. }: &Ephemeral) -> String {
    let limit = limit_bytes.map_or_else(String::new, |bytes| format!(" of {}", human_size(bytes)));
    format!(" (ephemeral, {}{limit} changed)", human_size(*used_bytes))
}

fn requests(disk: &Disk, kind: &str) -> u64 {
    disk.total.requests.get(kind).map_or(0, |requests| requests.count)
}

fn warnings(disk: &Disk) -> String {
    let line = |warning: &String| {
        format!("{WARNING}warning{WARNING:#}: disk {}: {}\n", sanitize(&disk.id), sanitize(warning))
    };
    disk.warnings.iter().map(line).collect()
}

/// Events, the latest last.
pub(crate) fn events(Events { events }: &Events) -> String {
    if events.is_empty() {
        return "  no events yet\n".to_owned();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut table = TextTable::new(&["", "AGO", "DISK", "EVENT", ""], &[true]);
    for Event { number, time_ms, event, disk, text } in events {
        let ago = duration(now.saturating_sub(Duration::from_millis(*time_ms)));
        let event = event.replace('_', " ");
        table.row(vec![number.to_string(), ago, sanitize(disk), sanitize(&event), sanitize(text)]);
    }
    table.render()
}

/// Request counts and latencies of a disk.
pub(super) fn stats(disk: &Disk) -> String {
    let Stats { in_flight, rounds, interrupts, .. } = &disk.total;
    let queues = match disk.queues.len() {
        1 => "1 queue".to_owned(),
        count => format!("{count} queues"),
    };
    format!(
        "{BOLD}{}{BOLD:#}: {queues}, {in_flight} in flight, {} rounds, {} interrupts; {} ({})\n\n{}\n{}{}",
        sanitize(&disk.id),
        grouped(*rounds),
        grouped(*interrupts),
        disk.engine.name,
        disk.engine.reason,
        kinds(&disk.total) + &discards(&disk.discards),
        parts(&disk.total),
        warnings(disk),
    )
}

fn kinds(stats: &Stats) -> String {
    let heading = ["", "REQUESTS", "BYTES", "ERRORS", "BACKEND P50", "P99", "MAX"];
    let mut table = TextTable::new(&heading, &[false, true, true, true, true, true, true]);
    // Not in alphabetical order.
    for kind in ["read", "write", "flush", "discard", "write_zeroes"] {
        let Some(requests) = stats.requests.get(kind) else { continue };
        let [p50, p99, max] = figures(&requests.backend);
        let bytes = match (kind, requests.bytes) {
            ("flush", _) => "-".to_owned(),
            (_, bytes) => human_size(bytes),
        };
        let (count, errors) = (grouped(requests.count), grouped(requests.errors));
        table.row(vec![kind.replace('_', " "), count, bytes, errors, p50, p99, max]);
    }
    table.render()
}

/// Results of discards; empty without discards.
fn discards(discards: &Discards) -> String {
    let Discards { requested_bytes, merged_bytes, freed_bytes, skipped_bytes } = *discards;
    if requested_bytes == 0 {
        return String::new();
    }
    let [requested, merged, freed, skipped] =
        [requested_bytes, merged_bytes, freed_bytes, skipped_bytes].map(human_size);
    format!(
        "\n  discards: {requested} requested, {freed} freed ({merged} of it merged), {skipped} skipped\n"
    )
}

/// Latencies outside the backend.
fn parts(stats: &Stats) -> String {
    let mut table = TextTable::new(&["", "P50", "P99", "MAX"], &[false, true, true, true]);
    for (name, latency) in [("wait in the queue", &stats.wait), ("completion", &stats.completion)] {
        let [p50, p99, max] = figures(latency);
        table.row(vec![name.to_owned(), p50, p99, max]);
    }
    table.render()
}

fn figures(latency: &Latency) -> [String; 3] {
    [latency.p50_ns, latency.p99_ns, latency.max_ns].map(|figure| match figure {
        Some(nanoseconds) => short_time(nanoseconds),
        None => "-".to_owned(),
    })
}

/// A duration with three digits and a unit.
fn short_time(nanoseconds: u64) -> String {
    let [us, ms, s] = [1_000, 1_000_000, 1_000_000_000];
    let (scale, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (us, "µs"),
        1_000_000..1_000_000_000 => (ms, "ms"),
        _ => (s, "s"),
    };
    let (whole, hundredths) = (nanoseconds / scale, nanoseconds % scale * 100 / scale);
    match whole {
        0..10 => format!("{whole}.{hundredths:02} {unit}"),
        10..100 => format!("{whole}.{} {unit}", hundredths / 10),
        _ => format!("{whole} {unit}"),
    }
}

/// A duration in its two largest units.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_are_short() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let times = [256, 1_500, 12_345, 654_321, 1_050_000, 2_000_000_000];
        let short = ["256 ns", "1.50 µs", "12.3 µs", "654 µs", "1.05 ms", "2.00 s"];
        assert_eq!(times.map(short_time), short);
        let seconds = [5, 65, 3_700, 90_000].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(seconds, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
