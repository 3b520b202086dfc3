//! The same figures in Prometheus' text format, version 0.0.4. Control socket thread.
//!
//! Counts are by queue; latencies are summed over the queues of a disk, in buckets of powers of two.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use devices::storage::{Histogram, OperationKind, QueueStats};

use super::collect::View;
use super::latency::Counts;
use super::model::{Held, State, Trimmed};
use crate::disks::ManagedDisk;

/// What `Content-Type` says.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every fourth bucket of [`Histogram`] ends at a power of two.
const EVERY: usize = 4;

/// All metrics of the machine.
pub(super) fn render(view: &View) -> String {
    let mut page = Page(String::new());
    machine(&mut page, view);
    let all = view.disks.all();
    disks(&mut page, &all);
    queues(&mut page, &all);
    latencies(&mut page, &all);
    page.0
}

struct Page(String);

impl Page {
    /// Begins a family of metrics.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A string takes all that is written to it.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// `labels` are names and values; the values need no escapes, by the rules for ids.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        let mut opening = '{';
        for (label, text) in labels {
            let _ = write!(self.0, "{opening}{label}=\"{text}\"");
            opening = ',';
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], counts: &Counts) {
        let bucket = format!("{name}_bucket");
        for (end, below) in counts.cumulative().step_by(EVERY) {
            let end = end.as_secs_f64().to_string();
            self.sample(&bucket, &[labels, &[("le", &end)]].concat(), below);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), counts.count());
        self.sample(&format!("{name}_sum"), labels, counts.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, counts.count());
    }
}

fn machine(page: &mut Page, view: &View) {
    page.family("bulkhead_info", "gauge", "The program.");
    page.sample("bulkhead_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let paused = u8::from(view.state() == State::Paused);
    page.single("bulkhead_paused", "Whether the machine is paused.", paused);
    let uptime = view.started.elapsed().as_secs_f64();
    page.single("bulkhead_uptime_seconds", "Time since the guest started.", uptime);
    if let Some(machine) = &view.machine {
        page.single("bulkhead_vcpus", "Virtual processors.", machine.vcpus);
        page.single("bulkhead_memory_bytes", "Guest memory.", machine.memory_bytes);
    }
}

fn disks(page: &mut Page, all: &[Arc<ManagedDisk>]) {
    let mut gauge = |name: &str, help: &str, value: fn(&ManagedDisk) -> u64| {
        page.family(name, "gauge", help);
        for disk in all {
            page.sample(name, &[("disk", disk.config.id())], value(disk));
        }
    };
    gauge("bulkhead_disk_size_bytes", "Size.", |disk| disk.control.geometry().capacity);
    gauge("bulkhead_disk_write_cache", "Whether the guest has a volatile write cache.", |disk| {
        disk.control.write_cache().into()
    });
    gauge("bulkhead_disk_unsafe", "Whether flushes are ignored.", |disk| disk.is_unsafe().into());
    gauge("bulkhead_disk_held", "Requests that wait for space.", |disk| {
        disk.held().map_or(0, |held| held.requests)
    });
    gauge("bulkhead_disk_lost_writes", "Whether acknowledged writes were lost.", |disk| {
        disk.control.backend().status().lost_writes.into()
    });
    let help = "Whether the soft limit on the space of its store is reached.";
    gauge("bulkhead_disk_soft_limit_reached", help, |disk| {
        disk.control.backend().status().soft_limit.is_some_and(|limit| limit.reached).into()
    });
    trimmed(page, all);
    let help = "How long the oldest request has waited for space, and why. Absent when none does.";
    held(page, all, "bulkhead_disk_held_age_seconds", help, |held| held.age_ms);
    let help = "How long until the oldest of them fails, if there is no space before.";
    held(page, all, "bulkhead_disk_held_deadline_seconds", help, |held| held.deadline_ms);
}

fn trimmed(page: &mut Page, all: &[Arc<ManagedDisk>]) {
    let mut counter = |what: &str, help: &str, bytes: fn(&Trimmed) -> u64| {
        let name = format!("bulkhead_disk_trim_{what}_bytes_total");
        page.family(&name, "counter", help);
        for disk in all {
            page.sample(&name, &[("disk", disk.config.id())], bytes(&disk.trimmed()));
        }
    };
    counter("asked", "Bytes that the guest discarded.", |trimmed| trimmed.asked_bytes);
    let help = "Of those freed, bytes in pieces too small to free one by one.";
    counter("gathered", help, |trimmed| trimmed.gathered_bytes);
    counter("freed", "Bytes given back to the host.", |trimmed| trimmed.freed_bytes);
}

fn held(
    page: &mut Page,
    all: &[Arc<ManagedDisk>],
    name: &str,
    help: &str,
    milliseconds: fn(&Held) -> u64,
) {
    page.family(name, "gauge", help);
    for disk in all {
        if let Some(held) = disk.held() {
            let labels = [("disk", disk.config.id()), ("error", &held.error)];
            page.sample(name, &labels, Duration::from_millis(milliseconds(&held)).as_secs_f64());
        }
    }
}

fn queues(page: &mut Page, all: &[Arc<ManagedDisk>]) {
    let mut family = |name: &str, kind: &str, help: &str, value: fn(&QueueStats) -> u64| {
        page.family(name, kind, help);
        for (disk, number, queue) in all_queues(all) {
            page.sample(name, &[("disk", disk), ("queue", &number)], value(queue));
        }
    };
    let counter = "counter";
    family("bulkhead_disk_in_flight", "gauge", "Requests that the engine holds.", |queue| {
        queue.in_flight.get()
    });
    family("bulkhead_disk_rounds_total", counter, "Turns of the worker's loop.", |queue| {
        queue.rounds.get()
    });
    family("bulkhead_disk_interrupts_total", counter, "Interrupts sent.", |queue| {
        queue.interrupts.get()
    });
    family("bulkhead_disk_yields_total", counter, "CPU given away while polling.", |queue| {
        queue.yields.get()
    });
    family("bulkhead_disk_answered_total", counter, "Requests that took no disk.", |queue| {
        queue.answered.get()
    });
    let mut by_kind = |name: &str, help: &str, value: fn(&QueueStats, OperationKind) -> u64| {
        page.family(name, counter, help);
        for (disk, number, queue) in all_queues(all) {
            for kind in OperationKind::ALL {
                let labels = [("disk", disk), ("queue", &number), ("kind", kind.name())];
                page.sample(name, &labels, value(queue, kind));
            }
        }
    };
    by_kind("bulkhead_disk_requests_total", "Requests completed.", |queue, kind| {
        queue.kind(kind).requests.get()
    });
    by_kind("bulkhead_disk_bytes_total", "Bytes moved, discarded or zeroed.", |queue, kind| {
        queue.kind(kind).bytes.get()
    });
    by_kind("bulkhead_disk_errors_total", "Requests that failed.", |queue, kind| {
        queue.kind(kind).errors.get()
    });
}

/// Disk, number and figures of each queue.
fn all_queues(all: &[Arc<ManagedDisk>]) -> impl Iterator<Item = (&str, String, &QueueStats)> {
    all.iter().flat_map(|disk| {
        let queues = disk.control.stats().iter().enumerate();
        queues.map(|(number, queue)| (disk.config.id(), number.to_string(), &**queue))
    })
}

fn latencies(page: &mut Page, all: &[Arc<ManagedDisk>]) {
    let mut family = |name: &str, help: &str, histogram: fn(&QueueStats) -> &Histogram| {
        page.family(name, "histogram", help);
        for disk in all {
            let queues = disk.control.stats().iter();
            let counts = Counts::of(queues.map(|queue| histogram(queue)));
            page.histogram(name, &[("disk", disk.config.id())], &counts);
        }
    };
    let help = "Time in the ring of a busy worker, at most.";
    family("bulkhead_disk_wait_seconds", help, |queue| &queue.wait);
    let help = "Time from completion until the driver could see it.";
    family("bulkhead_disk_completion_seconds", help, |queue| &queue.completion);
    let name = "bulkhead_disk_backend_seconds";
    page.family(name, "histogram", "Time in the engine and the host.");
    for disk in all {
        for kind in OperationKind::ALL {
            let queues = disk.control.stats().iter();
            let counts = Counts::of(queues.map(|queue| &queue.kind(kind).backend));
            let labels = [("disk", disk.config.id()), ("kind", kind.name())];
            page.histogram(name, &labels, &counts);
        }
    }
}
